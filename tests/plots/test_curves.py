"""Values over the steps of a run, as matplotlib has them."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from gradtrace.plots.curves import Curve, curves_figure

STEPS = np.arange(6)


def test_each_curve_has_a_panel_with_its_spikes() -> None:
    """Over the same steps; the spikes that are finite are dots."""
    loss = Curve("loss", STEPS, np.arange(1.0, 7.0), [(3, 4.0), (4, math.inf)])
    norm = Curve("gradient norm", STEPS, np.full(6, 2.0))
    upper, lower = curves_figure([loss, norm]).axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("loss", "gradient norm")
    line, dots = upper.lines
    np.testing.assert_array_equal(line.get_xydata(), np.stack([STEPS, loss.values], axis=1))
    np.testing.assert_array_equal(dots.get_xydata(), [[3, 4.0]])
    assert len(lower.lines) == 1 and lower.get_legend() is None
    assert upper.get_yscale() == lower.get_yscale() == "log"
    assert lower.get_xlabel() == "step" and upper.get_shared_x_axes().joined(upper, lower)


def test_a_value_below_zero_makes_the_scale_linear() -> None:
    """Such as an ELBO, all of which is drawn; a zero alone is left out of a log scale."""
    [axis] = curves_figure([Curve("loss", STEPS, np.linspace(-1, 1, 6))]).axes
    assert axis.get_yscale() == "linear" and len(np.asarray(axis.lines[0].get_xdata())) == 6
    [axis] = curves_figure([Curve("loss", STEPS, np.arange(6.0))]).axes
    assert axis.get_yscale() == "log"
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), STEPS[1:])


def test_steps_without_a_finite_value_are_marked() -> None:
    """By a line across the panel, and are no point of the curve."""
    values = np.array([1.0, math.nan, 2.0, math.inf, -math.inf, 3.0])
    [axis] = curves_figure([Curve("loss", STEPS, values)]).axes
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [0, 2, 5])
    [marks] = [c for c in axis.collections if isinstance(c, LineCollection)]
    assert [segment[0, 0] for segment in marks.get_segments()] == [1, 3, 4]


def test_what_was_never_seen_has_no_panel() -> None:
    """And a figure of nothing is refused."""
    unseen = Curve("loss", STEPS, np.full(6, math.nan))
    [axis] = curves_figure([unseen, Curve("gradient norm", STEPS, np.ones(6))]).axes
    assert axis.get_ylabel() == "gradient norm"
    with pytest.raises(ValueError, match="no finite value to draw"):
        curves_figure([unseen])


def test_matplotlib_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the pip line."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'gradtrace\[plots\]'"):
        curves_figure([Curve("loss", STEPS, np.ones(6))])
