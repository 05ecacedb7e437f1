"""Gradients that moved nothing: overflows of the AMP scaler, and what loops throw away."""

from __future__ import annotations

import math

import pytest

from gradtrace.detect.skipped import SkippedStepDetector
from gradtrace.records import BatchRef, Discard, SkippedStep, StepRecord


def skip(detector: SkippedStepDetector, step: int) -> list[SkippedStep]:
    return detector.update(StepRecord(step, 0.0, scale=2.0, skipped=True))


def test_a_skipped_step_names_its_scale() -> None:
    """The event says at which scale the gradients overflowed; one whose scale is unknown, so."""
    [event] = SkippedStepDetector().update(StepRecord(5, 0.0, scale=65536.0, skipped=True, rank=3))
    assert (event.step, event.rank, event.scale) == (5, 3, 65536.0)
    assert "overflowed at scale 65536" in event.message
    [event] = SkippedStepDetector().update(StepRecord(5, 0.0, skipped=True))
    assert event.scale is None and "an unknown scale" in event.message


def test_other_steps_are_none() -> None:
    """A step that was taken is no event, and ends a streak."""
    detector = SkippedStepDetector()
    assert len(skip(detector, 0)) == len(skip(detector, 1)) == 1
    assert detector.update(StepRecord(2, 0.0, scale=2.0)) == []
    [event] = skip(detector, 3)
    assert event.streak == 1 and "in a row" not in event.message
    assert detector.finish() == []


def test_a_long_streak_is_told_ever_less_often_and_more_seriously() -> None:
    """Streaks of 1 to 10, 16, 32, ...; a warning from ten on, for a scale may take some to find."""
    detector = SkippedStepDetector()
    events = [event for step in range(100) for event in skip(detector, step)]
    assert [event.streak for event in events] == [*range(1, 11), 16, 32, 64]
    assert [event.severity for event in events] == ["info"] * 9 + ["warning"] * 4
    assert "64 steps in a row" in events[-1].message


def dropped(*discards: Discard, step: int = 7) -> StepRecord:
    return StepRecord(step, 9.0, rank=2, discarded=discards)


BATCH = BatchRef(1, 25, 65, (100, 101))


def test_a_dropped_batch_is_told() -> None:
    """With its loss, norm and batches, at the step that came after it."""
    discard = Discard(8.5, loss=math.nan, norm=3.25, batches=(BATCH,))
    [event] = SkippedStepDetector().update(dropped(discard))
    assert (event.step, event.time, event.rank, event.reason) == (7, 8.5, 2, "discarded")
    assert event.loss is not None and math.isnan(event.loss)
    assert (event.norm, event.batches, event.scale) == (3.25, (BATCH,), None)
    assert event.message == (
        "the loop threw the gradients of batch 25 of epoch 1 away: loss nan, norm 3.25"
    )


def test_many_batches_are_not_all_named() -> None:
    """In words; the event has them all."""
    batches = tuple(BatchRef(0, k, k) for k in range(5))
    [event] = SkippedStepDetector().update(dropped(Discard(0.0, batches=batches)))
    assert "of batches 0 of epoch 0, 1 of epoch 0, 2 of epoch 0 and 2 more away" in event.message
    assert event.batches == batches


@pytest.mark.parametrize(
    ("discard", "told"),
    [
        (Discard(0.0), False),
        (Discard(0.0, loss=1e9, norm=1e9), False),
        (Discard(0.0, loss=math.inf, norm=1.0), True),
        (Discard(0.0, loss=1.0, norm=math.nan), True),
        (Discard(0.0, loss=1.0, batches=(BATCH,)), True),
    ],
)
def test_what_was_only_looked_at_is_no_event(discard: Discard, told: bool) -> None:
    """Gradients of no batch of their own, and finite: an attack, Fisher information."""
    assert bool(SkippedStepDetector().update(dropped(discard))) == told


def test_a_loop_that_drops_all_is_told_ever_less_often() -> None:
    """As a scaler's streak is, apart from it; a step before which nothing was dropped ends it."""
    detector, discard = SkippedStepDetector(), Discard(0.0, batches=(BATCH,))
    events = detector.update(dropped(*[discard] * 20))
    events += [e for _ in range(80) for e in detector.update(dropped(discard))]
    assert [event.streak for event in events] == [*range(1, 11), 16, 32, 64]
    assert [event.severity for event in events] == ["info"] * 9 + ["warning"] * 4
    assert "64 in a row" in events[-1].message
    assert detector.update(dropped(Discard(0.0))) == []
    [event] = detector.update(dropped(discard))
    assert event.streak == 1


def test_both_reasons_at_once() -> None:
    """A step may be skipped by the scaler after a batch was dropped: what came first is first."""
    record = StepRecord(
        3, 0.0, scale=2.0, skipped=True, discarded=(Discard(0.0, batches=(BATCH,)),)
    )
    assert [e.reason for e in SkippedStepDetector().update(record)] == ["discarded", "overflow"]


def test_what_is_left_at_the_end_is_told_at_the_last_step() -> None:
    """The batch that a run ended with, of the step before it."""
    detector = SkippedStepDetector()
    detector.update(StepRecord(41, 0.0, rank=1))
    [event] = detector.rest([Discard(5.0, batches=(BATCH,)), Discard(5.0)])
    assert (event.step, event.rank, event.time) == (41, 1, 5.0)
