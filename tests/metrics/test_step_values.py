"""Runs as keys and numbers: each step's values, and the totals at the end."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gradtrace.metrics.run_summary import SUGGEST_AFTER, RunTotals
from gradtrace.metrics.step_values import StepValues
from gradtrace.records import (
    MOMENT_COLUMNS,
    Clip,
    LayerTable,
    Record,
    RunInfo,
    Spike,
    StepRecord,
)

INFO = RunInfo(name="run", started=0.0, path=Path(), parameters=[{"name": "w", "shape": (2,)}])


def spike(step: int, signal: str = "loss", duration: int = 1) -> Spike:
    return Spike(
        step=step,
        time=0.0,
        severity="warning",
        message="",
        signal=signal,
        value=9.0,
        baseline=1.0,
        ratio=9.0,
        score=2.0,
        duration=duration,
    )


def test_every_key_of_a_step() -> None:
    """The names of the contract, the user's own below logged/, NaN left out unless asked for."""
    clip = Clip("norm", 1.0, 2.0, 1.0, 0.5, True)
    step = StepRecord(
        step=4,
        time=0.0,
        loss=math.nan,
        grad_norm=2.0,
        lr=(0.1, 0.2),
        clip=clip,
        gradients=LayerTable(("w",), np.ones((1, 6)), MOMENT_COLUMNS),
        logged={"accuracy": 0.5},
        scores={"loss": 0.2, "grad_norm": 0.7},
    )
    values = StepValues(INFO, layers=1)
    assert values.update(spike(4)) is None
    assert values.update(step) == {
        "gradtrace/step": 4,
        "gradtrace/grad_norm": 2.0,
        "gradtrace/grad_norm_clipped": 1.0,
        "gradtrace/clip/coefficient": 0.5,
        "gradtrace/clip/fraction": 1.0,
        "gradtrace/lr_0": 0.1,
        "gradtrace/lr_1": 0.2,
        "gradtrace/spike_score": 0.7,
        "gradtrace/spikes": 1,
        "gradtrace/nonfinite_steps": 1,
        "gradtrace/skipped_steps": 0,
        "gradtrace/clipped_steps": 1,
        "gradtrace/overhead_seconds": 0,
        "gradtrace/layers/w/grad_norm": 1.0,
        "gradtrace/layers/w/zero_fraction": 1.0,
        "gradtrace/logged/accuracy": 0.5,
    }
    everything = StepValues(INFO, finite=False).update(step)
    assert everything is not None and math.isnan(everything["gradtrace/loss"])


def test_totals() -> None:
    """Percentiles by numpy over all norms, shares of all steps, a step with two spikes once."""
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(size=200))
    records: list[Record] = []
    for step, norm in enumerate(norms):
        clip = Clip("norm", 1.0, norm, min(norm, 1.0), min(1.0, 1 / norm), bool(norm > 1.0))
        records.append(
            StepRecord(
                step=step, time=0.0, grad_norm=float(norm), clip=clip, seconds=0.1, overhead=0.001
            )
        )
    records += [spike(10), spike(10, "grad_norm"), spike(10, duration=4), spike(50)]
    totals = RunTotals()
    for record in records:
        totals.update(record)
    values = totals.values()
    for percentile in (50, 95, 99):
        assert values[f"gradtrace/grad_norm_p{percentile}"] == pytest.approx(
            np.percentile(norms, percentile)
        )
    assert values["gradtrace/clip/fraction_overall"] == np.mean(norms > 1.0)
    assert values["gradtrace/spikes"] == 3
    assert values["gradtrace/spike_share"] == 5 / 200
    assert values["gradtrace/overhead_ratio"] == pytest.approx(0.01)
    assert values["gradtrace/suggested_clip_norm"] == values["gradtrace/grad_norm_p95"]


def test_little_is_known_of_a_short_run() -> None:
    """No threshold is suggested from few steps, and nothing that is not a number is sent."""
    totals = RunTotals()
    totals.update(StepRecord(step=0, time=0.0))
    assert all(map(math.isfinite, totals.values().values()))
    assert "gradtrace/suggested_clip_norm" not in totals.values() and SUGGEST_AFTER > 1


def test_lost_records_are_told_where_they_are_known() -> None:
    """Within a trace each step has the sum over all its exporters; elsewhere there is none."""
    values = StepValues(INFO)
    lost = {"mlflow": 2, "wandb": 3}
    values.watch(lambda: lost)
    told = values.update(StepRecord(step=0, time=0.0))
    assert told is not None and told["gradtrace/dropped_records"] == 5
    lost["wandb"] = 4
    told = values.update(StepRecord(step=1, time=0.0))
    assert told is not None and told["gradtrace/dropped_records"] == 6
