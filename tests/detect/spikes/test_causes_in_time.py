"""Causes in when spikes come: a period and what shares it, and where the learning rate stands."""

from __future__ import annotations

import dataclasses

import pytest
from spike_records import causes, record, spikes_of, sure

from gradtrace.records import BatchRef


def test_a_period_and_what_else_has_it() -> None:
    """Spikes each 50 steps where an epoch has 50; told from the fourth on."""
    records = [record(s, norm=9.0 if s >= 100 and s % 50 == 7 else 1.0) for s in range(420)]
    spikes = spikes_of(records)
    assert causes(spikes[0])["period"].confidence is None
    cause = causes(spikes[-1])["period"]
    assert cause.evidence["steps"] == 50 and cause.evidence["phases"] == [7]
    assert cause.evidence["matches"] == ["epochs"]
    assert cause.confidence is not None and cause.confidence > 0.99


def test_pauses_that_come_with_the_spikes() -> None:
    """A checkpoint before each spike shows as a long step at the period's phase."""
    records = []
    for s in range(520):
        one = record(s, norm=9.0 if s >= 100 and s % 60 == 7 else 1.0)
        one = dataclasses.replace(one, batches=(BatchRef(0, s, s, (s,)),))
        records.append(dataclasses.replace(one, seconds=2.0 if s % 60 == 7 else 0.1))
    matches = causes(spikes_of(records)[-1])["period"].evidence["matches"]
    assert matches == ["pauses (evaluation or checkpoints)"]


def test_a_jump_of_the_learning_rate() -> None:
    """A rate that rose fivefold three steps before."""
    records = [record(s, lr=0.1 if s < 98 else 0.5) for s in range(130)]
    records[100] = record(100, norm=9.0, lr=0.5)
    [spike] = spikes_of(records)
    cause = causes(spike)["learning rate"]
    assert cause.evidence["step"] == 98 and cause.evidence["ratio"] == pytest.approx(5.0)


def test_the_top_of_a_warm_up() -> None:
    """A rate that has risen for long and has just stopped."""
    records = [record(s, lr=0.001 * min(s + 1, 100)) for s in range(130)]
    records[104] = record(104, norm=9.0, lr=0.1)
    [spike] = spikes_of(records)
    assert "warm-up" in sure(spike)
    records = [record(s) for s in range(130)]
    records[104] = record(104, norm=9.0)
    assert "warm-up" not in causes(spikes_of(records)[0])
