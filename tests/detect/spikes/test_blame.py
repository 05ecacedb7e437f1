"""Who is blamed: the micro-batches that stand out, of the right step, and nobody in doubt of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
from spike_records import detector, record, run

from gradtrace.detect.spikes.blame import Blame, blame
from gradtrace.detect.spikes.history import History
from gradtrace.records import BatchRef, Clip, MicroBatch, Spike, StepRecord

CALM = (2.0, 2.1)


def pair(step: int, part: int) -> tuple[BatchRef, BatchRef]:
    """The batches of one micro-batch: one of a loader in its first epoch, one of another's."""
    at = 2 * step + part
    return (
        BatchRef(0, at, 2 * at, (f"images/{at}",)),
        BatchRef(step // 5, at % 10, 2 * at + 1, (f"texts/{at}",)),
    )


def step(
    number: int,
    losses: Sequence[float | None] = CALM,
    *,
    norm: float = 1.0,
    batches: Sequence[tuple[BatchRef, ...]] | None = None,
    **extra: object,
) -> StepRecord:
    """A step of two losses, each of a batch from either of two loaders."""
    given = [pair(number, 0), pair(number, 1)] if batches is None else batches
    parts = [MicroBatch(loss, batches=some) for loss, some in zip(losses, given, strict=True)]
    seen = tuple(loss for loss in losses if loss is not None)
    return dataclasses.replace(
        record(number, norm=norm, losses=seen, **extra),  # type: ignore[arg-type]
        parts=tuple(parts),
        batches=tuple(batch for some in given for batch in some),
    )


def spikes_of(*odd: StepRecord) -> list[Spike]:
    """The spikes of an ordinary run in which these steps are others."""
    records = [step(number) for number in range(130)]
    for one in odd:
        records[one.step] = one
    return [e for e in run(detector(), records) if isinstance(e, Spike) and e.duration == 1]


def judged(signal: str, *last: StepRecord, calm: int = 20, **scores: float) -> Blame:
    """The blame for the last of some steps after calm ones; `scores` are those of the one before
    it, its own do not count.
    """
    history = History()
    for number in range(calm):
        history.add(step(number), {})
    for one in last[:-1]:
        history.add(one, scores)
    return blame(signal, history.add(last[-1], {}), history)


def test_of_two_losses_and_four_batches_those_of_the_high_loss_are_blamed() -> None:
    """Both signals blame the two batches of the second loss, and name no other sample."""
    spikes = spikes_of(
        step(100, (2.0, 40.0), norm=9.0, batches=(pair(100, 0), pair(7, 1))),
        step(120, (2.0, 40.0), norm=9.0, batches=(pair(120, 0), pair(7, 1))),
    )
    assert [(s.step, s.signal) for s in spikes] == [
        (100, "loss"),
        (100, "grad_norm"),
        (120, "loss"),
        (120, "grad_norm"),
    ]
    for spike in spikes:
        assert (spike.suspect, spike.micro_batch) == ("batch", 1)
        assert len(spike.batches) == 4
        assert spike.blamed == pair(7, 1)
        assert spike.blamed_step == spike.step
        assert "batch 15 of epoch 0, 5 of epoch 1;" in spike.message + ";"
    for spike in spikes[2:]:
        [cause] = [cause for cause in spike.causes if cause.kind == "same samples"]
        assert sorted(cause.evidence["samples"]) == ["images/15", "texts/15"]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (1, 0)])
def test_a_sample_that_was_only_beside_a_blamed_one_is_no_suspect(first: int, second: int) -> None:
    """Batches come back that were beside the blamed ones in the first spike, the second or both."""
    batches = [pair(100, 0), pair(100, 1)], [pair(120, 0), pair(120, 1)]
    batches[0][first] = batches[1][second] = pair(7, 0)
    spikes = spikes_of(
        step(100, (2.0, 40.0), batches=batches[0]), step(120, (2.0, 40.0), batches=batches[1])
    )
    assert len(spikes) == 2
    assert "same samples" not in {cause.kind for cause in spikes[1].causes}


def test_one_high_loss_alone_is_that_of_its_batch() -> None:
    """A step of a single loss says nothing of the weights before it."""
    [spike] = spikes_of(step(100, (40.0,), batches=(pair(100, 0),)))
    assert (spike.suspect, spike.blamed, spike.micro_batch) == ("batch", pair(100, 0), None)


def test_the_micro_batch_is_counted_among_those_whose_loss_is_not_seen() -> None:
    """It is a place in the step's parts where these are known, in its losses where they are not."""
    batches = ((), pair(100, 0), pair(100, 1))
    unseen = step(100, (None, 2.0, 40.0), batches=batches)
    assert [spike.micro_batch for spike in spikes_of(unseen)] == [2]
    bare = dataclasses.replace(unseen, parts=())
    assert [spike.micro_batch for spike in spikes_of(bare)] == [1]


def test_a_gradient_spike_at_ordinary_losses_blames_all() -> None:
    """The largest of ordinary losses proves nothing, though it is the largest."""
    [spike] = spikes_of(step(100, norm=9.0))
    assert (spike.suspect, spike.micro_batch) == ("batch", 1)
    assert spike.blamed == spike.batches == pair(100, 0) + pair(100, 1)


def test_two_high_losses_of_three_are_both_blamed() -> None:
    """Not only the largest."""
    batches = (pair(20, 0), pair(20, 1), pair(21, 0))
    found = judged("loss", step(20, (9.0, 2.0, 30.0), batches=batches))
    assert found.suspect == "batch"
    assert found.batches == batches[0] + batches[2]


def test_high_losses_throughout_blame_what_the_update_before_was_made_of() -> None:
    """All of it, for nothing stood out there."""
    [spike] = spikes_of(step(100, (9.0, 9.5)))
    assert spike.suspect == "update"
    assert spike.blamed == spike.previous_batches == pair(99, 0) + pair(99, 1)
    assert spike.blamed_step == 99
    assert "at step 99" in spike.message


def test_a_violent_update_blames_those_who_made_it_so() -> None:
    """The micro-batch that stood out in the step before, where one did; else all of that step."""
    violent = step(20, (2.0, 40.0), norm=30.0)
    found = judged("grad_norm", violent, step(21), grad_norm=2.0, loss=2.0)
    assert (found.suspect, found.batches) == ("update", pair(20, 1))
    quiet = step(20, norm=30.0)
    found = judged("grad_norm", quiet, step(21), grad_norm=2.0)
    assert (found.suspect, found.batches) == ("update", pair(20, 0) + pair(20, 1))


def test_a_high_loss_in_a_step_that_was_no_spike_is_not_held_against_it() -> None:
    """The step before had an uneven pair of losses and raised no alarm: all of it is blamed."""
    uneven = step(20, (2.0, 3.5))
    found = judged("loss", uneven, step(21, (9.0, 9.0)), loss=0.6)
    assert (found.suspect, found.batches) == ("update", uneven.batches)


def test_a_clipped_update_is_not_suspected() -> None:
    """A spike that was clipped did the weights no harm: the step's own batches are blamed."""
    clip = Clip("norm", 1.0, 30.0, 1.0, 1 / 30, True)
    found = judged("grad_norm", step(20, norm=30.0, clip=clip), step(21), grad_norm=2.0)
    assert (found.suspect, found.batches) == ("batch", pair(21, 0) + pair(21, 1))


def test_nobody_is_blamed_for_a_jump_of_the_learning_rate() -> None:
    """The rate of the update before rose fivefold; even where all losses are high after it."""
    jumped = step(20, lr=0.5)
    for losses in (CALM, (9.0, 9.0)):
        found = judged("loss", jumped, step(21, losses, lr=0.5))
        assert (found.suspect, found.batches) == ("update", ())
    assert "rose 5 times at the step before" in judged("loss", jumped, step(21, lr=0.5)).suspicion


def test_the_rate_of_a_step_acts_after_its_loss() -> None:
    """A rate that jumps at the very step of the spike cannot have made it."""
    found = judged("loss", step(20), step(21, lr=0.5))
    assert (found.suspect, found.batches) == ("batch", pair(21, 0) + pair(21, 1))


def test_a_violent_update_is_blamed_before_its_learning_rate() -> None:
    """Its gradient was a spike itself: with another batch it had been none."""
    found = judged("loss", step(20, norm=30.0, lr=0.5), step(21, lr=0.5), grad_norm=2.0)
    assert found.batches == pair(20, 0) + pair(20, 1)


def test_a_second_loss_on_the_same_batches_blames_all() -> None:
    """It has none of its own: whichever of the two is high, the batches are the same."""
    batches = (pair(20, 0) + pair(20, 1), ())
    for losses in ((2.0, 40.0), (40.0, 2.0)):
        assert judged("loss", step(20, losses, batches=batches)).batches == batches[0]


@pytest.mark.parametrize("unseen", [None, math.nan])
def test_a_loss_that_is_not_seen_leaves_all_in_doubt(unseen: float | None) -> None:
    """It may be as high as the one that stands out; without batches of its own it matters not."""
    batches = (pair(20, 0), pair(20, 1), pair(21, 0))
    losses = (2.0, unseen, 40.0)
    assert judged("loss", step(20, losses, batches=batches)).batches == sum(batches, ())
    alone = (pair(20, 0), (), pair(21, 0))
    assert judged("loss", step(20, losses, batches=alone)).batches == pair(21, 0)


def test_losses_of_different_size_are_compared_with_their_own() -> None:
    """Of two tasks one has fifty times the loss of the other: only what is new stands out."""
    history = History()
    for number in range(30):
        history.add(step(number, (10.0, 0.2)), {})
    ordinary = history.add(step(30, (10.0, 0.2)), {})
    assert blame("grad_norm", ordinary, history).batches == ordinary.batches
    high = history.add(step(31, (10.0, 30.0)), {})
    found = blame("loss", high, history)
    assert (found.suspect, found.batches) == ("batch", pair(31, 1))
    high = history.add(step(32, (40.0, 0.2)), {})
    assert blame("loss", high, history).batches == pair(32, 0)


def test_losses_below_zero_tell_nothing() -> None:
    """A ratio to them has no meaning: all batches are blamed."""
    history = History()
    for number in range(30):
        history.add(step(number, (-2.0, -2.0)), {})
    facts = history.add(step(30, (-4.0, 5.0)), {})
    assert blame("grad_norm", facts, history).batches == facts.batches


def test_without_parts_as_many_batches_as_losses_are_matched() -> None:
    """A record that tells no micro-batches: the batch in the place of the high loss."""
    bare = dataclasses.replace(step(20, (2.0, 40.0)), parts=(), batches=pair(20, 0))
    assert judged("loss", bare).batches == (bare.batches[1],)
    more = dataclasses.replace(bare, batches=pair(20, 0) + pair(20, 1))
    assert judged("loss", more).batches == more.batches


def test_what_cannot_be_told_blames_all_of_the_step() -> None:
    """At a first step, and after too few."""
    for before in (0, 2):
        found = judged("grad_norm", step(before), calm=before)
        assert (found.suspect, found.batches) == ("unknown", pair(before, 0) + pair(before, 1))


def test_without_batches_nobody_is_blamed() -> None:
    """A run whose loader is not watched."""
    found = judged("loss", step(20, (2.0, 40.0), batches=((), ())))
    assert (found.suspect, found.batches) == ("batch", ())
