"""`trace.clipping` against plain numpy over the same steps."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gradtrace.detect.clipping import ClippingStats, Newest, clipped_norm, clipped_norms
from gradtrace.records import MOMENT_COLUMNS, Clip, LayerTable, StepRecord


def record(step: int, norms: list[float], threshold: float = 1.0) -> StepRecord:
    values = np.zeros((len(norms), len(MOMENT_COLUMNS)))
    values[:, 0] = norms
    names = tuple(f"w{k}" for k in range(len(norms)))
    total = math.sqrt(sum(n * n for n in norms))
    factor = min(1.0, threshold / total)
    clip = Clip("norm", threshold, total, total * factor, factor, factor < 1.0)
    table = LayerTable(names, values, MOMENT_COLUMNS)
    return StepRecord(step, float(step), grad_norm=total, clip=clip, gradients=table)


def test_the_summary_equals_plain_arithmetic() -> None:
    """Counts, fraction, median coefficient, percentiles and shares are those of the steps."""
    rng = np.random.default_rng(0)
    steps = [record(k, list(np.abs(rng.standard_cauchy(3)))) for k in range(500)]
    stats = ClippingStats()
    for step in steps:
        stats.update(step)
    summary = stats.summary()
    norms = np.array([s.grad_norm for s in steps], dtype=float)
    clipped = [s for s in steps if s.clip is not None and s.clip.clipped]
    assert summary.steps == summary.calls == 500
    assert summary.clipped == len(clipped)
    assert summary.fraction == len(clipped) / 500
    factors = [s.clip.coefficient for s in clipped if s.clip is not None]
    assert summary.coefficient == pytest.approx(float(np.median(factors)))
    for q, value in summary.percentiles.items():
        assert value == pytest.approx(float(np.percentile(norms, q)))
    shares = np.mean(
        [
            s.gradients.column("norm") ** 2 / s.grad_norm**2
            for s in clipped
            if s.gradients is not None and s.grad_norm is not None
        ],
        axis=0,
    )
    assert dict(summary.dominant) == pytest.approx({f"w{k}": shares[k] for k in range(3)})
    assert [share for _, share in summary.dominant] == sorted(shares, reverse=True)


def test_streaks() -> None:
    """The present and the longest streak count clipped steps in a row."""
    stats = ClippingStats()
    for k, size in enumerate([5, 5, 5, 0.1, 5, 5]):
        stats.update(record(k, [float(size)]))
    summary = stats.summary()
    assert (summary.streak, summary.longest_streak, summary.clipped) == (2, 3, 5)


def test_percentiles_are_over_a_window() -> None:
    """Memory is bounded: percentiles are those of the newest norms."""
    stats = ClippingStats(window=10)
    for k in range(100):
        stats.update(record(k, [float(k + 1)]))
    assert stats.summary().percentiles[50] == pytest.approx(95.5)


def test_layers_that_come_and_go_keep_their_shares() -> None:
    """A layer that joins later is counted from then on, under its own name."""
    stats = ClippingStats()
    stats.update(record(0, [3.0]))
    stats.update(record(1, [3.0, 4.0]))
    stats.update(record(2, [3.0]))
    shares = dict(stats.summary().dominant)
    assert shares == pytest.approx({"w0": (1 + 9 / 25 + 1) / 3, "w1": (16 / 25) / 3})


def test_nothing_yet() -> None:
    """Without steps the summary says so instead of inventing numbers."""
    summary = ClippingStats().summary()
    assert summary.steps == 0 and summary.fraction == 0.0 and summary.dominant == ()
    assert all(math.isnan(value) for value in summary.percentiles.values())


def test_a_bad_norm_is_left_out() -> None:
    """A NaN or infinite norm enters no percentile and no share."""
    stats = ClippingStats()
    stats.update(record(0, [2.0]))
    stats.update(StepRecord(1, 0.0, grad_norm=math.inf))
    assert stats.summary().percentiles[99] == 2.0


def test_a_threshold_is_suggested_once_there_are_enough_norms() -> None:
    """Of the norms that clipping was given, where they are known; of the global ones else."""
    rng = np.random.default_rng(0)
    steps = [record(k, [float(rng.lognormal())]) for k in range(100)]
    stats = ClippingStats()
    for step in steps[:99]:
        stats.update(step)
    assert stats.summary().suggested is None
    stats.update(steps[99])
    norms = [step.grad_norm for step in steps if step.grad_norm is not None]
    assert stats.summary().suggested == pytest.approx(float(np.percentile(norms, 95)))
    assert stats.summary().suggested == pytest.approx(stats.summary().percentiles[95])


def test_what_a_threshold_is_compared_with() -> None:
    """A part of the gradient where only that is clipped, the whole where nothing was seen."""
    part = Clip("norm", 1.0, 2.0, 1.0, 0.5, True)
    unseen = Clip("value", 1.0, math.nan, math.nan, math.nan, True)
    whole = StepRecord(0, 0.0, grad_norm=5.0)
    assert clipped_norm(whole) == 5.0
    assert clipped_norm(dataclasses.replace(whole, clip=part)) == 2.0
    assert clipped_norm(dataclasses.replace(whole, clip=unseen)) == 5.0
    assert math.isnan(clipped_norm(StepRecord(0, 0.0)))
    columns = clipped_norms(np.asarray([2.0, math.nan, math.inf]), np.asarray([5.0, 6.0, 7.0]))
    assert columns.tolist() == [2.0, 6.0, 7.0]


def test_the_newest_values_are_kept() -> None:
    """At most so many, finite ones only."""
    newest = Newest(3)
    for value in (1.0, math.nan, 2.0, math.inf, 3.0, 4.0):
        newest.add(value)
        assert len(newest) == len(newest.values) <= 3
    assert sorted(newest.values) == [2.0, 3.0, 4.0]
