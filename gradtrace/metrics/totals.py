"""The present values of the metrics, and what is counted over a run."""

from __future__ import annotations

import math
from collections import deque

from gradtrace.records import Event, Record, Spike, StepRecord

CLIP_WINDOW = 100


class Totals:
    """Present values of the metrics, from records fed in order.

    For one thread. Bounded memory; a few us a step, most of it for `is_nonfinite`.
    """

    def __init__(self) -> None:
        self._last: StepRecord | None = None
        self._window: deque[bool] = deque(maxlen=CLIP_WINDOW)
        self._window_sum = 0
        self._spikes = 0
        self._nonfinite = 0
        self._skipped = 0
        self._clipped = 0
        self._overhead = 0.0

    def update(self, record: Record) -> None:
        """Takes one more record."""
        if isinstance(record, Event):
            self._spikes += isinstance(record, Spike) and record.duration == 1
            return
        clipped = record.clip is not None and record.clip.clipped
        if len(self._window) == CLIP_WINDOW:
            self._window_sum -= self._window[0]
        self._window.append(clipped)
        self._window_sum += clipped
        self._clipped += clipped
        self._skipped += record.skipped
        self._nonfinite += is_nonfinite(record)
        self._overhead += record.overhead
        self._last = record

    def values(self) -> dict[str, float]:
        """Values by key, counts always, the rest as the last step had it.

        `lr` for one param group, `lr_0`, `lr_1`, ... for several. Values may be NaN or Inf.
        """
        values: dict[str, float] = {
            "spikes": self._spikes,
            "nonfinite_steps": self._nonfinite,
            "skipped_steps": self._skipped,
            "clipped_steps": self._clipped,
            "overhead_seconds": self._overhead,
        }
        last = self._last
        if last is None:
            return values
        values["step"] = last.step
        values["clip/fraction"] = self._window_sum / len(self._window)
        if last.loss is not None:
            values["loss"] = last.loss
        if last.grad_norm is not None:
            values["grad_norm"] = last.grad_norm
        if last.scores:
            values["spike_score"] = max(last.scores.values())
        if last.clip is not None:
            values["grad_norm_clipped"] = last.clip.norm_after
            values["clip/coefficient"] = last.clip.coefficient
        if len(last.lr) == 1:
            values["lr"] = last.lr[0]
        else:
            for group, lr in enumerate(last.lr):
                values[f"lr_{group}"] = lr
        return values


def is_nonfinite(record: StepRecord) -> bool:
    """Whether NaN or Inf reached the step's loss or gradients."""
    for value in (record.loss, record.grad_norm):
        if value is not None and not math.isfinite(value):
            return True
    table = record.gradients
    return table is not None and bool((table.column("nonfinite") > 0).any())
