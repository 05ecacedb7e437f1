"""Optimizer steps that the AMP scaler skipped."""

from __future__ import annotations

from gradtrace.detect.nonfinite import announced
from gradtrace.records import Event, SkippedStep, StepRecord
from gradtrace.thresholds import SKIPPED_STREAK


class SkippedStepDetector:
    """Fed every record in order; gives one `SkippedStep` for each skipped step.

    In a streak beyond ten, events come at lengths 16, 32, 64, ...: a scaler that no longer finds a
    scale must not fill the disk.
    """

    def __init__(self) -> None:
        self._streak = 0

    def update(self, record: StepRecord) -> list[SkippedStep]:
        """The event of this step, if it was skipped."""
        if not record.skipped:
            self._streak = 0
            return []
        self._streak += 1
        if not announced(self._streak):
            return []
        scale = "an unknown scale" if record.scale is None else f"scale {record.scale:g}"
        return [
            SkippedStep(
                step=record.step,
                time=record.time,
                severity="info" if self._streak < SKIPPED_STREAK else "warning",
                message=f"the optimizer step was skipped: the gradients overflowed at {scale}"
                + (f", {self._streak} steps in a row" if self._streak > 1 else ""),
                rank=record.rank,
                scale=record.scale,
                streak=self._streak,
            )
        ]

    def finish(self) -> list[Event]:
        """Nothing waits for the end of the run."""
        return []
