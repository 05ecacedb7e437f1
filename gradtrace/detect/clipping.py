"""What clipping does to a run: how often, how much, for how long, and because of which layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradtrace.records import Array, StepRecord

WINDOW = 1 << 16
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class ClippingSummary:
    """`trace.clipping`: how clipping went so far.

    `steps` counts recorded steps, `calls` those on which a clipping function ran, `clipped` those
    it changed; `fraction` is clipped / steps. `coefficient` is the median factor on clipped steps
    (1.0 if none). `percentiles` maps 50, 90, 95, 99 to gradient norms before clipping, over the
    last `WINDOW` finite ones. `dominant` lists layers by their mean share of the squared norm on
    clipped steps, largest first; the shares of all layers add up to 1.
    """

    steps: int
    calls: int
    clipped: int
    fraction: float
    coefficient: float
    streak: int
    longest_streak: int
    percentiles: dict[int, float]
    dominant: tuple[tuple[str, float], ...]


class ClippingStats:
    """Sums up records, in bounded memory; fed by the background thread, read by any."""

    def __init__(self, *, window: int = WINDOW) -> None:
        self._norms: Array = np.empty(window)
        self._coefficients: Array = np.empty(window)
        self._norm_count = 0
        self._coefficient_count = 0
        self._steps = self._calls = self._clipped = 0
        self._streak = self._longest = 0
        self._names: tuple[str, ...] = ()
        self._last_names: tuple[str, ...] = ()
        self._rows = np.zeros(0, dtype=np.intp)
        self._shares: Array = np.zeros(0)
        self._shared_steps = 0

    def update(self, record: StepRecord) -> None:
        """One more record. About 20 us."""
        self._steps += 1
        norm = record.grad_norm
        if norm is not None and math.isfinite(norm):
            self._norms[self._norm_count % len(self._norms)] = norm
            self._norm_count += 1
        clip = record.clip
        if clip is None or not clip.clipped:
            self._calls += clip is not None
            self._streak = 0
            return
        self._calls += 1
        self._clipped += 1
        self._streak += 1
        self._longest = max(self._longest, self._streak)
        if math.isfinite(clip.coefficient):
            at = self._coefficient_count % len(self._coefficients)
            self._coefficients[at] = clip.coefficient
            self._coefficient_count += 1
        self._add_shares(record)

    def _add_shares(self, record: StepRecord) -> None:
        table = record.gradients
        if table is None or record.grad_norm is None or not math.isfinite(record.grad_norm):
            return
        if table.names is not self._last_names:
            at = {name: i for i, name in enumerate(self._names)}
            for name in table.names:
                at.setdefault(name, len(at))
            self._names = tuple(at)
            self._shares = np.concatenate([self._shares, np.zeros(len(at) - len(self._shares))])
            self._rows = np.asarray([at[name] for name in table.names], dtype=np.intp)
            self._last_names = table.names
        square = np.nan_to_num(np.square(table.column("norm")))
        total = float(square.sum())
        if total > 0:
            self._shares[self._rows] += square / total
            self._shared_steps += 1

    def summary(self, *, layers: int = 10) -> ClippingSummary:
        """The state so far, with the `layers` layers that dominate clipped norms."""
        norms = self._norms[: min(self._norm_count, len(self._norms))]
        coefficients = self._coefficients[: min(self._coefficient_count, len(self._coefficients))]
        values = np.percentile(norms, PERCENTILES) if len(norms) else [math.nan] * len(PERCENTILES)
        shares = self._shares / max(self._shared_steps, 1)
        top = np.argsort(-shares, kind="stable")[: layers if self._shared_steps else 0]
        return ClippingSummary(
            steps=self._steps,
            calls=self._calls,
            clipped=self._clipped,
            fraction=self._clipped / self._steps if self._steps else 0.0,
            coefficient=float(np.median(coefficients)) if len(coefficients) else 1.0,
            streak=self._streak,
            longest_streak=self._longest,
            percentiles=dict(zip(PERCENTILES, map(float, values), strict=True)),
            dominant=tuple([(self._names[i], float(shares[i])) for i in top if shares[i] > 0]),
        )
