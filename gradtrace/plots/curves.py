"""A value over the steps of a run, such as its loss or gradient norm, with its spikes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtrace.plots.style import ALARM, LINE, legend, new_figure, plain_numbers
from gradtrace.records import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """What is drawn of one value: `steps` [n], ascending, and `values` [n], float64.

    NaN and Inf are marked at their steps. `spikes` are the steps and values of its spikes.
    """

    label: str
    steps: Any
    values: Array
    spikes: Sequence[tuple[int, float]] = ()


def curves_figure(curves: Sequence[Curve]) -> Figure:
    """The curves below each other over the same steps, spikes as dots; those without a value not.

    Raises ImportError with what to install where matplotlib is missing, ValueError when no curve
    has a finite value.
    """
    shown = [curve for curve in curves if np.isfinite(curve.values).any()]
    if not shown:
        raise ValueError("there is no finite value to draw; expected at least one in a curve")
    figure = new_figure(3.0 * len(shown))
    rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, curve in zip(rows, shown, strict=True):
        draw_curve(axis, curve)
        spikes = [point for point in curve.spikes if math.isfinite(point[1])]
        if spikes:
            axis.plot(*zip(*spikes, strict=True), "o", color=ALARM, label="spike")
            legend(axis)
        plain_numbers(axis.yaxis)
    rows[-1].set_xlabel("step")
    return figure


def draw_curve(axis: Axes, curve: Curve) -> None:
    """The line alone, on a log scale unless a value is negative; zero has no place on that one."""
    finite = np.isfinite(curve.values)
    log = not (curve.values[finite] < 0).any()
    drawn = finite & (curve.values > 0) if log else finite
    axis.plot(curve.steps[drawn], curve.values[drawn], color=LINE, lw=1.2)
    if log:
        axis.set_yscale("log")
    bad = curve.steps[~finite]
    if len(bad):
        across = axis.get_xaxis_transform()
        axis.vlines(bad, 0, 1, transform=across, color=ALARM, lw=0.8, alpha=0.6)
    axis.set_ylabel(curve.label)
    axis.grid(alpha=0.25)
