"""Causes: each found from its evidence, none without, and "not enough data" where that is so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from spike_records import detector, record, run

from gradtrace.records import (
    ACTIVATION_COLUMNS,
    BatchRef,
    Cause,
    LayerTable,
    Spike,
    StepRecord,
)


def spikes_of(records: Sequence[StepRecord]) -> list[Spike]:
    return [e for e in run(detector(), records) if isinstance(e, Spike) and e.duration == 1]


def causes(spike: Spike) -> dict[str, Cause]:
    return {cause.kind: cause for cause in spike.causes}


def sure(spike: Spike) -> set[str]:
    return {cause.kind for cause in spike.causes if cause.confidence is not None}


def test_the_same_samples_again() -> None:
    """A sample that was in an earlier spike is named, with what chance would have given."""
    records = [record(step) for step in range(260)]
    records[100] = record(100, norm=9.0, ids=(5, 6, 77, 8))
    records[220] = record(220, norm=9.0, ids=(50, 77, 51, 52))
    first, second = spikes_of(records)
    assert "same samples" not in causes(first)
    cause = causes(second)["same samples"]
    assert cause.evidence["samples"] == [77] and cause.evidence["steps"] == [100]
    assert cause.confidence is not None and cause.confidence > 0.5
    assert second.causes[0].confidence == max(c.confidence or 0 for c in second.causes)


def test_no_ids_is_not_enough_data() -> None:
    """Without sample ids nothing is claimed about samples."""
    records = [dataclasses.replace(record(step), batches=()) for step in range(120)]
    records[100] = dataclasses.replace(record(100, norm=9.0), batches=())
    [spike] = spikes_of(records)
    cause = causes(spike)["same samples"]
    assert cause.confidence is None and "not enough data" in cause.message


def test_a_source_that_is_in_every_spike() -> None:
    """Ids like "web/17" name their source; one in ten steps, but all spikes."""
    records = []
    for step in range(420):
        spiked = step >= 100 and step % 60 == 40
        source = "web" if spiked or step % 10 == 3 else "books"
        one = record(step, norm=9.0 if spiked else 1.0, ids=(f"{source}/{step}", f"books/{step}b"))
        records.append(one)
    last = spikes_of(records)[-1]
    cause = causes(last)["source"]
    assert cause.evidence["source"] == "web"
    assert cause.confidence is not None and cause.confidence > 0.95


def test_an_unusually_long_sample() -> None:
    """Ids that end in "#len=N" carry lengths; the longest of all is told."""
    records = [record(step, ids=(f"a/{step}#len={100 + step % 50}",)) for step in range(120)]
    records[100] = record(100, norm=9.0, ids=("a/x#len=9000",))
    [spike] = spikes_of(records)
    assert causes(spike)["length"].evidence["length"] == 9000
    records[100] = record(100, norm=9.0, ids=("a/x#len=120",))
    assert "length" not in causes(spikes_of(records)[0])


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


def test_a_module_whose_output_is_not_finite() -> None:
    """Named on steps that measured activations; the count of bad gradients otherwise."""
    values = np.zeros((2, len(ACTIVATION_COLUMNS)))
    values[1, 5] = 4
    records = [record(s) for s in range(120)]
    records[100] = record(
        100, norm=9.0, activations=LayerTable(("embed", "block"), values, ACTIVATION_COLUMNS)
    )
    [spike] = spikes_of(records)
    assert spike.causes[0].kind == "non-finite input"
    assert spike.causes[0].evidence == {"module": "block"}
    records[100] = record(100, norm=9.0, bad=3)
    assert causes(spikes_of(records)[0])["non-finite gradients"].evidence == {"count": 3}


def test_half_precision_that_overflowed() -> None:
    """A step that the AMP scaler skipped shortly before."""
    records = [record(s, scale=1024.0) for s in range(120)]
    records[98] = record(98, scale=1024.0, skipped=True)
    records[100] = record(100, norm=9.0, scale=512.0)
    [spike] = spikes_of(records)
    assert causes(spike)["half precision"].evidence == {"steps": [98], "scale": 512.0}


def test_one_signal_without_the_other() -> None:
    """A high loss with an ordinary gradient, and the reverse."""
    records = [record(s) for s in range(160)]
    records[100] = record(100, loss=9.0)
    records[130] = record(130, norm=9.0)
    loss, norm = spikes_of(records)
    assert "unusual loss only" in sure(loss)
    assert "unusual gradient only" in sure(norm)
    records[140] = record(140, loss=9.0, norm=9.0)
    both = spikes_of(records)[-1]
    assert not {"unusual loss only", "unusual gradient only"} & set(causes(both))


def test_a_small_batch() -> None:
    """The last batch of an epoch, with 2 samples where 8 are usual; a full one is not blamed."""
    records = [record(step, ids=tuple(range(step * 8, step * 8 + 8))) for step in range(160)]
    records[100] = record(100, norm=9.0, ids=(800, 801))
    records[140] = record(140, norm=9.0, ids=tuple(range(1120, 1128)))
    small, full = spikes_of(records)
    found = causes(small)["small batch"]
    assert found.evidence == {"samples": 2, "usual": 8.0}
    assert "2 samples where 8 are usual" in found.message
    assert "small batch" not in causes(full)
