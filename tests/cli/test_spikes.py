"""`gradtrace spikes`."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run

from gradtrace import load_run
from gradtrace.detect.spikes.detector import latest_spikes


def test_spikes_lists_them(spiking: Path) -> None:
    """`gradtrace spikes` lists step, signal and batch; `--step` tells one in full."""
    found = latest_spikes(load_run(spiking / "gradtrace-runs" / "poisoned").events)
    code, text = run("spikes", "poisoned")
    assert code == 0 and all(f" {spike.step} " in f" {text} " for spike in found)
    code, text = run("spikes", "poisoned", "--step", str(found[-1].step))
    assert code == 0
    assert f"spike at step {found[-1].step}" in text
    assert "77" in text and "suspect" in text and "layers" in text


def test_spikes_draws_one(spiking: Path) -> None:
    """`--figure` writes a picture, and asks for the step where it is missing."""
    pytest.importorskip("matplotlib")
    step = latest_spikes(load_run(spiking / "gradtrace-runs" / "poisoned").events)[-1].step
    code, text = run("spikes", "poisoned", "--step", str(step), "--figure", "spike.png")
    assert code == 0 and "drawn: spike.png" in text
    assert (spiking / "spike.png").stat().st_size > 10_000
    assert run("spikes", "poisoned", "--figure", "spike.png")[0] == 2
    code, text = run("spikes", "poisoned", "--step", "3")
    assert code == 2 and "no spike at step 3" in text
    code, text = run("spikes", "poisoned", "--step", str(step), "--figure", "no/where.png")
    assert code == 1 and "where.png" in text


def test_spikes_of_a_calm_run(runs: Path) -> None:
    """`gradtrace spikes` says that there are none."""
    assert run("spikes", "small") == (0, "no spikes in small")
