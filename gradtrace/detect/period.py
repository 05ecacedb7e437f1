"""Whether events come back every k steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST = 4
COVERAGE = 0.6
SURE = 1e-3
NEWEST = 200
_TOGETHER = 250


@dataclass(frozen=True, slots=True)
class Period:
    """Events every `steps` steps, at `phase` modulo it.

    `hits` of `slots` possible returns were seen, out of `events` in all. `p_value` bounds the
    probability that events without a period look so regular, all periods tried counted.
    """

    steps: int
    phase: int
    hits: int
    slots: int
    events: int
    p_value: float


def find_period(steps: Sequence[int], *, smallest: int = 2, largest: int = 5000) -> Period | None:
    """The period of events at `steps`, None when chance would do as well.

    For every k the events are folded modulo k. Under no period each of them falls into the fullest
    phase with probability 1/k, so the count there is binomial; its tail times the phases and times
    the periods tried (Bonferroni) is the p-value. A period must also be seen at `COVERAGE` of its
    turns, or a divisor of it would pass. O(periods x events) numpy, some milliseconds.
    """
    times = np.unique(np.asarray(steps, dtype=np.int64))[-NEWEST:]
    count = len(times)
    if count < LEAST:
        return None
    span = int(times[-1] - times[0])
    # Three turns at least must be seen.
    candidates = np.arange(smallest, min(largest, span // (LEAST - 1)) + 1)
    regular: list[Period] = []
    for some in np.split(candidates, range(_TOGETHER, len(candidates), _TOGETHER)):
        hits, phases = _fullest(times, some)
        for i in np.flatnonzero(hits >= LEAST):
            k, phase, seen = int(some[i]), int(phases[i]), int(hits[i])
            there = times[times % k == phase]
            turns = int(there[-1] - there[0]) // k
            if seen < COVERAGE * (turns + 1) or turns * k < 0.5 * span:
                continue
            p = min(1.0, _tail(count, seen, 1 / k) * k * len(candidates))
            if p < SURE:
                regular.append(Period(k, phase, seen, turns + 1, count, p))
    if not regular:
        return None
    best = min(regular, key=lambda period: period.p_value)
    # Every second turn may look more regular than all of them, when some are missing.
    finer = [one for one in regular if best.steps % one.steps == 0 and one.hits >= best.hits]
    return max(finer, key=lambda period: period.hits)


def _fullest(
    times: npt.NDArray[np.int64], periods: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each period, the count in the fullest phase and that phase."""
    phases = np.sort(times[:, None] % periods, axis=0)
    row = np.arange(len(times))[:, None]
    new = np.ones(phases.shape, dtype=bool)
    new[1:] = phases[1:] != phases[:-1]
    # The length of the run of equal phases that ends at each row.
    length = row - np.maximum.accumulate(np.where(new, row, 0), axis=0) + 1
    at = length.argmax(axis=0)
    column = np.arange(len(periods))
    return length[at, column], phases[at, column]


def _tail(n: int, hits: int, p: float) -> float:
    """P(X >= hits) of a binomial(n, p), by its log terms."""
    x = np.arange(hits, n + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    terms = (
        log_factorials[n]
        - log_factorials[x]
        - log_factorials[n - x]
        + x * np.log(p)
        + (n - x) * np.log1p(-p)
    )
    return float(np.exp(np.minimum(terms, 0.0)).sum())
