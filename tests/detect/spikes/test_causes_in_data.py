"""Causes in the samples: found where they are, none without, and only among what is blamed."""

from __future__ import annotations

import dataclasses

import pytest
from spike_records import causes, record, spikes_of, sure

from gradtrace.records import BatchRef, MicroBatch, StepRecord


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


def with_parts(one: StepRecord, other: tuple[str, ...], loss: float = 2.0) -> StepRecord:
    """The step with a second micro-batch of an ordinary loss before it."""
    second = BatchRef(5, one.step, 1000 + one.step, other)
    high = MicroBatch(loss, batches=one.batches)
    parts = (MicroBatch(2.0, batches=(second,)), high)
    batches = (second, *one.batches)
    losses = (2.0, loss)
    mean = sum(losses) / 2
    return dataclasses.replace(one, parts=parts, batches=batches, losses=losses, loss=mean)


def test_what_was_beside_the_blamed_batch_is_no_cause() -> None:
    """A long sample, and a source in every spike, of the micro-batch whose loss was ordinary."""
    records = []
    for step in range(320):
        spiked = step in (100, 160, 220, 280)
        one = record(step, ids=(f"books/{step}#len={100 + step % 50}",))
        other = f"web/{step}#len=9000" if spiked else f"books/{step}b#len=100"
        records.append(with_parts(one, (other,), 40.0 if spiked else 2.0))
    spikes = spikes_of(records)
    assert len(spikes) == 4
    for spike in spikes:
        assert not {"length", "source", "same samples"} & sure(spike)
    # The other way round it is: the same with the high loss on the other micro-batch.
    turned = [dataclasses.replace(r, parts=_turned(r.parts)) for r in records]
    last = spikes_of(turned)[-1]
    assert causes(last)["length"].evidence["length"] == 9000
    assert causes(last)["source"].evidence["source"] == "web"


def _turned(parts: tuple[MicroBatch, ...]) -> tuple[MicroBatch, ...]:
    first, second = parts
    return MicroBatch(second.loss, batches=first.batches), MicroBatch(
        first.loss, batches=second.batches
    )


def test_a_source_in_one_batch_of_four_is_judged_by_batches() -> None:
    """In each fourth batch, so in each step; in every batch that is blamed, so it stands out."""
    records = []
    for step in range(420):
        spiked = step >= 100 and step % 60 == 40
        names = ("web", "books", "wiki", "code")
        refs = [
            BatchRef(0, 4 * step + i, 4 * step + i, (f"{n}/{step}",)) for i, n in enumerate(names)
        ]
        losses = (40.0 if spiked else 2.0, 2.0, 2.0, 2.0)
        parts = [MicroBatch(loss, batches=(ref,)) for loss, ref in zip(losses, refs, strict=True)]
        one = record(step, losses=losses)
        records.append(dataclasses.replace(one, parts=tuple(parts), batches=tuple(refs)))
    spikes = spikes_of(records)
    assert len(spikes) == 6
    found = causes(spikes[-1])["source"]
    assert (found.evidence["source"], found.evidence["share"]) == ("web", 0.25)
    assert found.evidence["p"] == pytest.approx(0.25**6)


def test_a_source_of_whole_steps_is_judged_by_whole_steps() -> None:
    """Where all four batches are blamed, one in each fourth batch is no surprise in any."""
    records = []
    for step in range(420):
        spiked = step >= 100 and step % 60 == 40
        refs = [
            BatchRef(0, 4 * step + i, 4 * step + i, (f"{n}/{step}",))
            for i, n in enumerate(("web", "books", "wiki", "code"))
        ]
        one = record(step, norm=9.0 if spiked else 1.0)
        records.append(dataclasses.replace(one, batches=tuple(refs)))
    last = spikes_of(records)[-1]
    assert len(last.blamed) == 4
    assert "source" not in sure(last)


def test_no_sample_is_claimed_where_nobody_is_blamed() -> None:
    """After a jump of the learning rate the samples are not even said to be unknown."""
    records = [record(step, lr=0.1 if step < 109 else 0.5) for step in range(130)]
    records[100] = record(100, norm=9.0, ids=(7, 8))
    records[110] = record(110, norm=9.0, ids=(7, 8), lr=0.5)
    first, second = spikes_of(records)
    assert first.blamed and not second.blamed
    assert "same samples" not in causes(second)
