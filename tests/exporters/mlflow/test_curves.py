"""The figure of loss and gradient norm."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
from build import spike, step

from gradtrace.exporters.mlflow.curves import Curves


def test_a_run_of_any_length_is_kept_in_bounded_memory() -> None:
    """Every second, fourth, ... step is left, evenly over the whole run."""
    curves = Curves(most=16)
    for number in range(1000):
        curves.update(step(number, loss=1.0, grad_norm=2.0))
    kept = [number for number, _, _ in curves._points]
    assert 8 <= len(kept) <= 16
    [stride] = {after - before for before, after in itertools.pairwise(kept)}
    assert kept[0] == 0 and kept[-1] > 999 - stride


def test_a_spike_is_marked_once() -> None:
    """One that is told again when it has ended, and one of another signal, add no mark."""
    curves = Curves()
    for one in (spike(3), spike(3, duration=4), spike(5, signal="grad_norm"), spike(6, signal="x")):
        curves.update(one)
    assert curves._spikes == {"loss": [(3, 9.0)], "grad_norm": [(5, 9.0)]}


@pytest.mark.parametrize("loss", [2.0, math.nan, None])
def test_a_figure_is_drawn_of_what_there_is(tmp_path: Path, loss: float | None) -> None:
    """With and without a loss, with NaN among the values, and spikes."""
    pytest.importorskip("matplotlib")
    curves = Curves()
    for number in range(5):
        curves.update(step(number, loss=loss, grad_norm=math.inf if number == 3 else 1.0))
    curves.update(spike(2))
    curves.update(spike(2, signal="grad_norm", value=math.inf))
    assert curves.draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_see_makes_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a machine without matplotlib."""
    curves = Curves()
    curves.update(step(0, loss=math.nan))
    assert not curves.draw(tmp_path / "figure.png")
    curves.update(step(1, loss=1.0))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not curves.draw(tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []
