"""Gradients that moved nothing: the AMP scaler kept a step back, or the loop threw them away."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradtrace.detect.nonfinite import announced
from gradtrace.records import Discard, Event, Severity, SkippedStep, StepRecord
from gradtrace.thresholds import SKIPPED_STREAK

_NAMED = 3
"""Batches that a message names."""


class SkippedStepDetector:
    """Fed every record in order; gives one `SkippedStep` for each step or batch that was skipped.

    In a streak beyond ten, events come at lengths 16, 32, 64, ...: a scaler that no longer finds a
    scale, or a loop that drops every batch, must not fill the disk. What a loop computed and threw
    away is told where that may matter: it had a batch of its own, or was not finite. Attacks,
    Fisher information and the like are neither.
    """

    def __init__(self) -> None:
        self._overflows = 0
        self._drops = 0
        self._step = self._rank = 0

    def update(self, record: StepRecord) -> list[SkippedStep]:
        """The events of what was thrown away before this step, and of it if it was skipped."""
        self._step, self._rank = record.step, record.rank
        found = self.rest(record.discarded)
        self._overflows = self._overflows + 1 if record.skipped else 0
        if record.skipped and announced(self._overflows):
            scale = "an unknown scale" if record.scale is None else f"scale {record.scale:g}"
            found.append(
                SkippedStep(
                    step=record.step,
                    time=record.time,
                    severity=_severity(self._overflows),
                    message=f"the optimizer step was skipped: the gradients overflowed at {scale}"
                    + (f", {self._overflows} steps in a row" if self._overflows > 1 else ""),
                    rank=record.rank,
                    scale=record.scale,
                    streak=self._overflows,
                )
            )
        return found

    def rest(self, discards: Sequence[Discard]) -> list[SkippedStep]:
        """The events of what was thrown away: since the step before, or at the end of a run."""
        matter = [discard for discard in discards if _matters(discard)]
        if not matter:
            self._drops = 0
        found = []
        for discard in matter:
            self._drops += 1
            if announced(self._drops):
                found.append(
                    SkippedStep(
                        step=self._step,
                        time=discard.time,
                        severity=_severity(self._drops),
                        message=_message(discard, self._drops),
                        rank=self._rank,
                        streak=self._drops,
                        reason="discarded",
                        loss=discard.loss,
                        norm=discard.norm,
                        batches=discard.batches,
                    )
                )
        return found

    def finish(self) -> list[Event]:
        """Nothing waits for the end of the run."""
        return []


def _matters(discard: Discard) -> bool:
    values = (discard.loss, discard.norm)
    return bool(discard.batches) or any(v is not None and not math.isfinite(v) for v in values)


def _severity(streak: int) -> Severity:
    return "info" if streak < SKIPPED_STREAK else "warning"


def _message(discard: Discard, streak: int) -> str:
    of = ""
    if discard.batches:
        named = [f"{one.batch_index} of epoch {one.epoch}" for one in discard.batches[:_NAMED]]
        more = len(discard.batches) - len(named)
        word = "batch" if len(discard.batches) == 1 else "batches"
        of = f" of {word} {', '.join(named)}" + (f" and {more} more" if more else "")
    known = {"loss": discard.loss, "norm": discard.norm}
    numbers = ", ".join(f"{name} {v:.3g}" for name, v in known.items() if v is not None)
    text = f"the loop threw the gradients{of} away" + (f": {numbers}" if numbers else "")
    return text + (f", {streak} in a row" if streak > 1 else "")
