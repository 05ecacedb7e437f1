"""What a run amounts to, as keys and numbers, for backends that compare runs."""

from __future__ import annotations

import math

from gradtrace.detect.clipping import ClippingStats
from gradtrace.metrics.step_values import PREFIX
from gradtrace.metrics.totals import Totals
from gradtrace.records import Record, Spike, StepRecord


class RunTotals:
    """What a run amounts to, made for comparing runs; fed in order. One thread, bounded memory."""

    def __init__(self) -> None:
        self._totals = Totals()
        self._norms = ClippingStats()
        self._seconds = 0.0
        self._overhead = 0.0
        self._steps = 0
        self._spiking: set[int] = set()
        self._spike_steps = 0

    def update(self, record: Record) -> None:
        """Takes one more record."""
        self._totals.update(record)
        if isinstance(record, StepRecord):
            self._norms.update(record)
            self._steps += 1
            if record.seconds is not None:
                self._seconds += record.seconds
                self._overhead += record.overhead
        elif isinstance(record, Spike):
            self._add_spike(record)

    def _add_spike(self, spike: Spike) -> None:
        """Loss and norm may spike at once: a step counts once."""
        if len(self._spiking) > 1000:
            newest = max(self._spiking)
            self._spiking = {step for step in self._spiking if step > newest - 1000}
        steps = set(range(spike.step, spike.step + min(spike.duration, 1000)))
        self._spike_steps += len(steps - self._spiking)
        self._spiking |= steps

    def values(self) -> dict[str, float]:
        """Summary values by key below `gradtrace/`, finite ones only.

        `grad_norm_p50` (p95, p99) over the last 65,536 finite norms before clipping;
        `clip/fraction_overall` of all steps; `spike_share` of steps; `suggested_clip_norm`, once
        there are enough norms; `overhead_ratio` to the time spent.
        """
        clipping = self._norms.summary()
        totals = self._totals.values()
        values = {
            "grad_norm_p50": clipping.percentiles[50],
            "grad_norm_p95": clipping.percentiles[95],
            "grad_norm_p99": clipping.percentiles[99],
            "clip/fraction_overall": clipping.fraction,
            "spikes": totals["spikes"],
            "spike_share": self._spike_steps / self._steps if self._steps else math.nan,
            "nonfinite_steps": totals["nonfinite_steps"],
            "skipped_steps": totals["skipped_steps"],
            "overhead_ratio": self._overhead / self._seconds if self._seconds else math.nan,
        }
        if clipping.suggested is not None:
            values["suggested_clip_norm"] = clipping.suggested
        return {PREFIX + key: float(value) for key, value in values.items() if math.isfinite(value)}
