"""A loss that is not above zero, of which no spikes can be found."""

from __future__ import annotations

from gradtrace.records import RunNote, StepRecord

ENOUGH = 20
"""Steps with a loss of zero or less before that is noted; a single zero is a perfect fit."""


class NonPositiveLoss:
    """Fed every record in order; notes once that the loss's spikes are not looked for."""

    def __init__(self) -> None:
        self._seen = 0

    def update(self, record: StepRecord) -> list[RunNote]:
        """The note, at the step that completes the evidence."""
        if record.loss is None or record.loss > 0 or self._seen >= ENOUGH:
            return []
        self._seen += record.loss <= 0  # NaN is neither
        if self._seen < ENOUGH:
            return []
        return [
            RunNote(
                step=record.step,
                time=record.time,
                severity="warning",
                message=(
                    "the loss is not above zero: its spikes, which are judged as ratios, are not "
                    "looked for; those of the gradient norm are; trace.log(loss=...) with a "
                    "value above zero has that watched instead"
                ),
                rank=record.rank,
                source="spikes",
            )
        ]

    def finish(self) -> list[RunNote]:
        """Nothing waits for the end of the run."""
        return []
