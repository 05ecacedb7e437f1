"""Whether a loop that changes gradients with code of its own clips them, or rescales them.

Clipping multiplies by a factor that varies so as to land on one norm, or bounds values. Division by
tokens, accumulation steps, world size or a loss scale, gradient surgery and noise do not: after
them the gradients are what the loop made of them, and there is no clip.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradtrace.measure.rows import ABS, NORM, l2
from gradtrace.records import Array, ClipKind

# Uniform scaling leaves the layers' norm ratios equal but for rounding, coarsest in bfloat16.
_UNIFORM = 2e-3
_LANDED = 1e-3
"""Relative distance from a norm that earlier clips landed on."""
_EXACT = 1e-5
"""The same where one coincidence would be enough."""
_UNTOUCHED = 1e-6
_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_, and in what people copy from it
_CAPPED = 5e-3
"""What the largest value has lost more than the norm, relatively, where values were bounded."""
_REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a change did. `kind` is None where it was no clipping.

    `threshold` is what it clipped to, NaN where that did not show. `factor` is what multiplied all
    layers alike, None where nothing did.
    """

    kind: ClipKind | None
    threshold: float = math.nan
    factor: float | None = None


class HandMade:
    """Judges the changes of one run, in order. Background thread; O(layers) numpy, bounded memory.

    A norm that is landed on once may be chance. So a change is norm clipping when layers or groups
    land on one norm together, when it lands on what earlier clips landed on, when gradients with
    norms below were left alone, or when the first change of all lands on a round number. A factor
    that stays while the norm varies is never clipping.
    """

    def __init__(self) -> None:
        self._landings: deque[float] = deque(maxlen=_REMEMBERED)
        # The norm that the last change led to, and its factor; of several groups, each one's.
        self._last: list[tuple[float, float]] = []
        self._latest = Verdict(None, factor=1.0)
        self._changes = 0
        self._least = math.inf

    def untouched(self, norm: float) -> None:
        """A step's gradients were used as the backward left them."""
        if norm > 0:
            self._least = min(self._least, norm)

    def judge(self, before: Array, after: Array) -> Verdict:
        """What turned `before` into `after`, rows of the same layers.

        Where nothing was changed it is what the clipping seen last would have done.
        """
        verdict = self._judged(before, after)
        if verdict.kind is not None:
            self._latest = Verdict(verdict.kind, verdict.threshold, 1.0)
        return verdict

    def _judged(self, before: Array, after: Array) -> Verdict:
        was, now = before[:, NORM], after[:, NORM]
        some = was > 0
        with np.errstate(all="ignore"):
            ratios = now[some] / was[some]
        if not len(ratios) or not np.all(np.isfinite(ratios)) or np.any(now[~some] > 0):
            return Verdict(None)
        changed = np.abs(ratios - 1) > _UNTOUCHED
        if not changed.any():
            self.untouched(l2(after))
            return self._latest
        self._changes += 1
        uniform = float(np.ptp(ratios)) <= _UNIFORM * float(np.max(ratios))
        factor = float(np.median(ratios)) if uniform else None
        last, self._last = self._last, []
        if np.any(ratios > 1 + _UNTOUCHED):
            return Verdict(None, factor=factor)
        bound = _bound(before, after)
        if bound is not None:
            return Verdict("value", bound)
        was, now = was[some], now[some]
        if factor is not None:
            return self._whole(l2(before), l2(after), factor, last)
        landed = self._together(was[changed], now[changed])
        if landed is not None:
            self._remember(landed)
            return Verdict("norm", landed)
        return self._groups(was[changed], now[changed], ratios[changed], last)

    def _whole(
        self, before: float, after: float, factor: float, last: Sequence[tuple[float, float]]
    ) -> Verdict:
        """All layers were multiplied by one factor below 1."""
        self._last = [(after, factor)]
        spared = self._least <= after * (1 + _LANDED) and not _kept(factor, last)
        if not (spared or self._lands(before, after, factor, last)):
            return Verdict(None, factor=factor)
        self._remember(after)
        return Verdict("norm", after, factor)

    def _lands(
        self, before: float, after: float, factor: float, last: Sequence[tuple[float, float]]
    ) -> bool:
        """Whether a norm that layers were brought to is one that others were brought to before."""
        if any(_near(after, one, _LANDED) for one in self._landings):
            return True
        if _kept(factor, last):
            return False
        first = self._changes == 1 and _is_round(after * (before + _EPSILON) / before)
        return first or any(_near(after, one, _EXACT) for one, _ in last)

    def _together(self, was: Array, now: Array) -> float | None:
        """The norm that layers of different norms were all brought to, if there is one."""
        varied = len(was) > 1 and np.ptp(was) > _UNIFORM * float(np.max(was))
        landed = float(np.median(now))
        return landed if varied and np.all(np.abs(now - landed) <= _LANDED * landed) else None

    def _groups(
        self, was: Array, now: Array, ratios: Array, last: Sequence[tuple[float, float]]
    ) -> Verdict:
        """Several factors: groups of layers, each clipped to a norm of its own or all to one."""
        order = np.argsort(ratios)
        jumps = np.flatnonzero(np.diff(ratios[order]) > _UNIFORM * ratios[order][:-1]) + 1
        found = [
            (float(np.linalg.norm(was[at])), float(np.linalg.norm(now[at])), float(ratios[at[0]]))
            for at in np.split(order, jumps)
        ]
        norms = [after for _, after, _ in found]
        self._last = [(after, factor) for _, after, factor in found[:_REMEMBERED]]
        equal = len(found) > 1 and all(_near(norm, norms[0], _LANDED) for norm in norms)
        if not equal and not all(self._lands(*one, last) for one in found):
            return Verdict(None)
        for norm in norms:
            self._remember(norm)
        return Verdict("norm", norms[0] if equal or len(norms) == 1 else math.nan)

    def _remember(self, norm: float) -> None:
        if not any(_near(norm, one, _LANDED) for one in self._landings):
            self._landings.append(norm)


def _bound(before: Array, after: Array) -> float | None:
    """The largest magnitude shared by all layers that lost some, if there is one."""
    with np.errstate(all="ignore"):
        peaks, norms = after[:, ABS] / before[:, ABS], after[:, NORM] / before[:, NORM]
    lowered = peaks < 1 - 1e-6
    # A layer that was scaled as a whole has lost as much of its norm as of its largest value.
    capped = (peaks < norms * (1 - _CAPPED)) | (1 - norms < (1 - peaks) / 2)
    if not np.any(lowered & capped):
        return None
    found = after[lowered, ABS]
    peak = float(np.max(found))
    together = np.ptp(found) <= 1e-5 * peak
    return peak if together and float(np.max(after[:, ABS])) <= peak * (1 + 1e-5) else None


def _kept(factor: float, last: Sequence[tuple[float, float]]) -> bool:
    """Whether the same factor was seen the last time, whatever came of it."""
    return any(_near(factor, one, _LANDED) for _, one in last)


def _near(value: float, other: float, tolerance: float) -> bool:
    return abs(value - other) <= tolerance * abs(other)


def _is_round(value: float) -> bool:
    """Whether people would write it with three digits at most."""
    return value > 0 and _near(value, float(f"{value:.3g}"), _EXACT)
