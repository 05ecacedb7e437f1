"""What a run amounts to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from build import spike

from gradtrace.metrics.run_summary import RunTotals
from gradtrace.records import Clip, Record, StepRecord


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
    records += [spike(10), spike(10, signal="grad_norm"), spike(10, duration=4), spike(50)]
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
    assert "gradtrace/suggested_clip_norm" not in totals.values()
