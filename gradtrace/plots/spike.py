"""The figure of one spike: what happened around it, in which layers, because of which samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtrace.attribution.suspects import Suspects
from gradtrace.plots.curves import Curve, draw_curve
from gradtrace.plots.style import (
    ALARM,
    GREY,
    ORANGE,
    SKY,
    SMALL,
    TITLE,
    legend,
    new_figure,
    plain_numbers,
    short,
)
from gradtrace.records import Array, Spike
from gradtrace.runlog.arrays import as_numpy
from gradtrace.runlog.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE = 50
AFTER = 20
LAYERS = 20
SAMPLES = 12
HEAT = 100.0
"""Norms that many times their median have the strongest colour, and so have all beyond."""
FAR = 1e6
"""Where the bar of a sample ends whose loss or norm is not finite."""

_SIGNALS = {"loss": "loss", "grad_norm": "gradient norm"}


def spike_figure(run: Run, spike: Spike, suspects: Suspects | None = None) -> Figure:
    """One spike: loss and norm around it on log scales, the layers' norms, the samples ranked.

    The title names the batches held responsible. Other spikes in the window are rings, and so is
    the step before where its update is to blame. The heat map shows each layer's norm relative to
    its median over the steps shown, for the layers that rose most. The samples' panel is there only
    with `suspects`; those that stand out are coloured.

    Raises ImportError with what to install where matplotlib is missing, ValueError when the run
    has no steps around the spike.
    """
    table = _around(run.steps, spike.step)
    if not table.num_rows:
        raise ValueError(f"run {run.path} has no steps around step {spike.step}")
    steps = as_numpy(table.column("step"))
    layers, heat, heat_steps = _layers(run, spike.step)
    heights = [1.0, 1.0] + [1.0 + 0.09 * len(layers)] * bool(len(layers))
    heights += [0.4 + 0.16 * min(SAMPLES, len(suspects))] if suspects is not None else []
    figure = new_figure(2.1 * sum(heights))
    axes = figure.subplots(len(heights), 1, height_ratios=heights)
    figure.suptitle(_title(spike), fontsize=TITLE)
    for axis, (signal, label) in zip(axes, _SIGNALS.items(), strict=False):
        values = as_numpy(table.column(signal)).astype(np.float64)
        draw_curve(axis, Curve(label, steps, values))
        _mark(axis, spike, signal, dict(zip(steps.tolist(), values.tolist(), strict=True)), run)
        axis.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
        plain_numbers(axis.yaxis)
    if len(layers):
        _draw_layers(axes[2], layers, heat, heat_steps)
        axes[2].set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
    if suspects is not None:
        _draw_samples(axes[-1], suspects)
    return figure


def save_spike_figure(run: Run, spike: Spike, path: Path, suspects: Suspects | None = None) -> None:
    """Writes the figure as PNG or whatever the path's suffix says."""
    spike_figure(run, spike, suspects).savefig(path, dpi=120)


def _title(spike: Spike) -> str:
    name = "Loss" if spike.signal == "loss" else "Gradient norm"
    title = f"{name} {spike.value:.4g} at step {spike.step}: {spike.ratio:.3g} times its baseline"
    if not spike.blamed:
        return title
    first, more = spike.blamed[0], len(spike.blamed) - 1
    batch = f"epoch {first.epoch}, batch {first.batch_index}"
    if more:
        batch += f" and {more} more"
    if spike.blamed_step != spike.step:
        batch += f", of step {spike.blamed_step}"
    return f"{title}\nblamed: {batch}"


def _mark(axis: Axes, spike: Spike, signal: str, shown: dict[int, float], run: Run) -> None:
    """The spike and its baseline in its own panel; rings at others, and at the step to blame."""
    if spike.signal == signal:
        axis.axhline(spike.baseline, color=GREY, lw=1, ls="--", label="baseline")
        axis.plot([spike.step], [spike.value], "o", color=ALARM, label="spike")
    others = _others(run, spike, signal, shown)
    if others:
        x, y = zip(*others, strict=True)
        axis.plot(x, y, "o", mfc="none", mec=ALARM, mew=0.9, alpha=0.6, label="other spikes")
    before = shown.get(spike.blamed_step, math.nan)
    if spike.blamed and spike.blamed_step != spike.step and math.isfinite(before):
        point = [spike.blamed_step], [before]
        axis.plot(*point, "o", mfc="none", mec=ORANGE, mew=1.5, ms=9, label="blamed step")
    if axis.get_legend_handles_labels()[1]:
        legend(axis)
    axis.axvspan(spike.step - 0.5, spike.step + spike.duration - 0.5, color=ALARM, alpha=0.12)


def _others(
    run: Run, spike: Spike, signal: str, shown: dict[int, float]
) -> list[tuple[int, float]]:
    """Step and value of the signal's other spikes among the steps shown."""
    values = {e.step: e.value for e in run.events if isinstance(e, Spike) and e.signal == signal}
    return [
        (step, value)
        for step, value in values.items()
        if step in shown and (step, signal) != (spike.step, spike.signal) and math.isfinite(value)
    ]


def _around(table: Any, step: int) -> Any:
    """The rows of a table from `BEFORE` steps before to `AFTER` after a step."""
    steps = as_numpy(table.column("step"))
    near = np.flatnonzero((steps >= step - BEFORE) & (steps <= step + AFTER))
    return table.slice(near[0], near[-1] - near[0] + 1) if len(near) else table.slice(0, 0)


def _layers(run: Run, step: int) -> tuple[list[str], Array, Any]:
    """Names, [layers, steps] of norm over median, and the steps, dense."""
    table = _around(run.gradients, step)
    if not table.num_rows:
        return [], np.empty((0, 0)), np.empty(0)
    steps = as_numpy(table.column("step"))
    names = table.column("layer").to_pylist()
    rows = {name: i for i, name in enumerate(dict.fromkeys(names))}
    dense = np.arange(steps.min(), steps.max() + 1)
    grid = np.full((len(rows), len(dense)), np.nan)
    grid[[rows[n] for n in names], steps - dense[0]] = as_numpy(table.column("norm"))
    with np.errstate(all="ignore"):
        middle = np.nanmedian(np.where(grid > 0, grid, np.nan), axis=1, keepdims=True)
        heat = grid / middle
    at = heat[:, min(max(step - int(dense[0]), 0), len(dense) - 1)]
    order = np.argsort(-np.nan_to_num(at, nan=0.0, posinf=math.inf), kind="stable")[:LAYERS]
    all_names = list(rows)
    return [all_names[i] for i in order], heat[order], dense


def _draw_layers(axis: Axes, layers: list[str], heat: Array, steps: Any) -> None:
    from matplotlib.colors import LogNorm

    most = float(np.nanmax(np.where(np.isfinite(heat), heat, np.nan)))
    top = min(max(2.0, most), HEAT)
    image = axis.imshow(
        heat,
        aspect="auto",
        interpolation="nearest",
        cmap="RdBu_r",
        norm=LogNorm(1 / top, top),
        extent=(steps[0] - 0.5, steps[-1] + 0.5, len(layers) - 0.5, -0.5),
    )
    axis.set_yticks(range(len(layers)), [short(name) for name in layers], fontsize=SMALL)
    axis.set_xlabel("step")
    beyond = "max" if most > HEAT else "neither"
    figure: Any = axis.figure
    bar = figure.colorbar(image, ax=axis, label="norm / its median", pad=0.01, extend=beyond)
    plain_numbers(bar.ax.yaxis)


def _draw_samples(axis: Axes, suspects: Suspects) -> None:
    shown = list(suspects)[:SAMPLES]
    ratios = [max(s.loss_ratio, s.norm_ratio) for s in shown]
    capped = [r if math.isfinite(r) else FAR for r in ratios]
    colors = [ALARM if s.stands_out else SKY for s in shown]
    bars = axis.barh(range(len(shown)), capped, color=colors)
    axis.set_yticks(range(len(shown)), [short(str(s.sample_id)) for s in shown], fontsize=SMALL)
    axis.invert_yaxis()
    axis.set_xscale("log")
    for bar, label, sample in zip(bars, axis.get_yticklabels(), shown, strict=False):
        if sample.stands_out:
            label.set_color(ALARM)
            legend(axis, "lower right", handles=[bar], labels=["stands out"])
    axis.axvline(1.0, color=GREY, lw=1, ls="--")
    axis.set_xlabel("sample's loss or gradient norm, the larger / median of the spike's samples")
    plain_numbers(axis.xaxis)
