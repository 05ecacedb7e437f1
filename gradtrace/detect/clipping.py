"""What clipping does to a run: how often, how much, for how long, and because of which layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradtrace.records import Array, StepRecord
from gradtrace.thresholds import NORMS_KEPT, suggested_clip_norm

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class ClippingSummary:
    """`trace.clipping`: how clipping went so far.

    `steps` counts recorded steps, `calls` those on which a clipping function ran, `clipped` those
    it changed; `fraction` is clipped / steps. `coefficient` is the median factor on clipped steps
    (1.0 if none). `percentiles` maps 50, 90, 95, 99 to global gradient norms before clipping, over
    the last NORMS_KEPT finite ones. `suggested` is the threshold that would catch outliers only,
    None while there are too few norms. `dominant` lists layers by their mean share of the squared
    norm on clipped steps, largest first; the shares of all layers add up to 1.
    """

    steps: int
    calls: int
    clipped: int
    fraction: float
    coefficient: float
    streak: int
    longest_streak: int
    percentiles: dict[int, float]
    suggested: float | None
    dominant: tuple[tuple[str, float], ...]


class Newest:
    """The newest finite ones of the values that are added, at most `size`."""

    def __init__(self, size: int) -> None:
        self._ring: Array = np.empty(size)
        self._count = 0

    def add(self, value: float) -> None:
        """One more; NaN and Inf are passed over."""
        if math.isfinite(value):
            self._ring[self._count % len(self._ring)] = value
            self._count += 1

    def __len__(self) -> int:
        return min(self._count, len(self._ring))

    @property
    def values(self) -> Array:
        """A view of them, float64 [n], not in the order of time; the next `add` may change it."""
        return self._ring[: len(self)]


def clipped_norms(norm_before: Array | float, grad_norm: Array | float) -> Array:
    """The norms that thresholds are compared with, of numbers or columns of numbers.

    What clipping was given, where it ran and that was seen; else the global norm. The two differ
    where a part of the parameters is clipped, as one player's of two.
    """
    return np.where(np.isfinite(norm_before), norm_before, grad_norm)


def clipped_norm(record: StepRecord) -> float:
    """The same of one record; NaN where nothing is known."""
    norm_before = math.nan if record.clip is None else record.clip.norm_before
    grad_norm = math.nan if record.grad_norm is None else record.grad_norm
    return float(clipped_norms(norm_before, grad_norm))


class ClippingStats:
    """Sums up records, in bounded memory; fed by the background thread, read by any."""

    def __init__(self, *, window: int = NORMS_KEPT) -> None:
        self._global = Newest(window)
        self._norms = Newest(window)
        self._coefficients = Newest(window)
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
        if record.grad_norm is not None:
            self._global.add(record.grad_norm)
        self._norms.add(clipped_norm(record))
        clip = record.clip
        if clip is None or not clip.clipped:
            self._calls += clip is not None
            self._streak = 0
            return
        self._calls += 1
        self._clipped += 1
        self._streak += 1
        self._longest = max(self._longest, self._streak)
        self._coefficients.add(clip.coefficient)
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
        norms, coefficients = self._global.values, self._coefficients.values
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
            suggested=suggested_clip_norm(self._norms.values),
            dominant=tuple([(self._names[i], float(shares[i])) for i in top if shares[i] > 0]),
        )
