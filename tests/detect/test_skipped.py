"""Steps that the AMP scaler skipped."""

from __future__ import annotations

from gradtrace.detect.skipped import SkippedStepDetector
from gradtrace.records import SkippedStep, StepRecord


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
