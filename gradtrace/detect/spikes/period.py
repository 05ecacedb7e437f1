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
    """Events every `steps` steps, at `phases` modulo it, the fullest first.

    `hits` of `slots` possible returns were seen, out of `events` in all. `p_value` bounds the
    probability that events without a period look so regular, all periods tried counted.
    """

    steps: int
    phases: tuple[int, ...]
    hits: int
    slots: int
    events: int
    p_value: float

    @property
    def phase(self) -> int:
        """The fullest phase."""
        return self.phases[0]


def find_period(
    steps: Sequence[int],
    *,
    smallest: int = 2,
    largest: int = 5000,
    known: Sequence[int] | None = None,
) -> Period | None:
    """The period of events at `steps`, None when chance would do as well.

    Periods from `smallest` to `largest` are tried, or only the `known` ones (an epoch's length),
    which takes fewer events.

    For every k the events are folded modulo k, and two counts are compared with chance. One thing
    that comes back fills one phase: each event falls into the fullest with probability 1/k, so the
    count there is binomial, times k phases. Several things that come back (bad documents, each
    epoch) repeat several phases: the events that fall where one was before number about
    n (n - 1) / 2k by chance, Poisson. The smaller tail, times two tests and the periods tried
    (Bonferroni), is the p-value. A period must also be seen at `COVERAGE` of its turns, or a
    divisor of it would pass. Looks at the `NEWEST` events; numpy over blocks of periods, some
    milliseconds, most of them without the GIL.
    """
    times = np.unique(np.asarray(steps, dtype=np.int64))[-NEWEST:]
    count = len(times)
    if count < LEAST:
        return None
    span = int(times[-1] - times[0])
    if known is None:
        # Three turns at least must be seen.
        candidates = np.arange(smallest, min(largest, span // (LEAST - 1)) + 1)
    else:
        candidates = np.asarray([k for k in known if smallest <= k <= span], dtype=np.int64)
    regular: list[Period] = []
    for some in np.split(candidates, range(_TOGETHER, len(candidates), _TOGETHER)):
        fullest, repeated = _folded(times, some)
        chance = count * (count - 1) / 2 / some
        # What is within three deviations of chance cannot survive Bonferroni.
        worth = (fullest >= LEAST) & (fullest > count / some + 3 * np.sqrt(count / some))
        worth |= (repeated >= LEAST - 1) & (repeated > chance + 3 * np.sqrt(chance))
        for i in np.flatnonzero(worth):
            k = int(some[i])
            one = _tail(count, int(fullest[i]), 1 / k) * k
            several = _poisson_tail(int(repeated[i]), float(chance[i]))
            for p, fullest_only in ((one, True), (several, False)):
                p = min(1.0, 2 * p * len(candidates))
                found = _covered(times, k, p, fullest_only) if p < SURE else None
                if found is not None:
                    regular.append(found)
    if not regular:
        return None
    best = min(regular, key=lambda period: (period.p_value, -period.hits))
    # Every second turn may look more regular than all of them, when some are missing.
    finer = [one for one in regular if best.steps % one.steps == 0 and one.hits >= best.hits]
    return max(finer, key=lambda period: period.hits)


def _covered(times: npt.NDArray[np.int64], k: int, p: float, fullest_only: bool) -> Period | None:
    """The period, if its phases are seen at most of their turns and over half of the time."""
    phases, counts = np.unique(times % k, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    order = order[:1] if fullest_only else order[counts[order] >= 2]
    hits = slots = longest = 0
    for at in order:
        there = times[times % k == phases[at]]
        turns = int(there[-1] - there[0]) // k
        hits, slots, longest = hits + len(there), slots + turns + 1, max(longest, turns * k)
    if hits < COVERAGE * slots or longest < 0.5 * int(times[-1] - times[0]):
        return None
    return Period(k, tuple(phases[order].tolist()), hits, slots, len(times), p)


def _folded(
    times: npt.NDArray[np.int64], periods: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each period, the count in the fullest phase, and the events that repeat a phase."""
    phases = np.sort(times[:, None] % periods, axis=0)
    row = np.arange(len(times))[:, None]
    new = np.ones(phases.shape, dtype=bool)
    new[1:] = phases[1:] != phases[:-1]
    # The length of the run of equal phases that ends at each row.
    length = row - np.maximum.accumulate(np.where(new, row, 0), axis=0) + 1
    return length.max(axis=0), len(times) - new.sum(axis=0)


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


def _poisson_tail(count: int, mean: float) -> float:
    """P(X >= count)."""
    x = np.arange(count, count + 200)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 200)))])
    return float(np.exp(np.minimum(x * np.log(mean) - mean - log_factorials[x], 0.0)).sum())
