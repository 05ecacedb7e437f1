"""Whether events come back every k steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradtrace.detect.spikes.chance import binomial_tail, poisson_tail

MIN_EVENTS = 4
"""Fewer are always regular to somebody."""
MAX_EVENTS = 200
"""The newest so many are looked at."""
SIGNIFICANCE = 1e-3
"""The corrected p-value below which a period is told."""
COVERAGE = 0.6
"""The share of its turns at which a period must be seen, or a divisor of it would pass."""
_BLOCK = 250
"""Periods folded at once."""


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

    For every k the n events are folded modulo k, and two counts are compared with what arrivals at
    random phases would give. One thing that comes back fills one phase. Each event falls into a
    given phase with probability 1 / k, so for the fullest count h, over k phases,

        p_one = k P(X >= h),          X ~ Binomial(n, 1 / k).

    Several things that come back (bad documents, each epoch) repeat several phases. Of the
    n (n - 1) / 2 pairs of events each falls together with probability 1 / k, so for the number g of
    events at a phase that had one before,

        p_several = P(Y >= g),        Y ~ Poisson(n (n - 1) / (2 k)).

    The p-value of a period is the smaller of them, times the two tests and the number of periods
    tried (Bonferroni). A period is told below SIGNIFICANCE, where it was seen at COVERAGE of its
    turns. Numpy over blocks of periods, some milliseconds, most of them without the GIL.
    """
    times = np.unique(np.asarray(steps, dtype=np.int64))[-MAX_EVENTS:]
    count = len(times)
    if count < MIN_EVENTS:
        return None
    span = int(times[-1] - times[0])
    if known is None:
        # Three turns at least must be seen.
        candidates = np.arange(smallest, min(largest, span // (MIN_EVENTS - 1)) + 1)
    else:
        candidates = np.asarray([k for k in known if smallest <= k <= span], dtype=np.int64)
    regular: list[Period] = []
    for some in np.split(candidates, range(_BLOCK, len(candidates), _BLOCK)):
        fullest, repeated = _folded(times, some)
        chance = count * (count - 1) / 2 / some
        # What is within three deviations of chance cannot survive Bonferroni.
        worth = (fullest >= MIN_EVENTS) & (fullest > count / some + 3 * np.sqrt(count / some))
        worth |= (repeated >= MIN_EVENTS - 1) & (repeated > chance + 3 * np.sqrt(chance))
        for i in np.flatnonzero(worth):
            k = int(some[i])
            one = k * binomial_tail(count, int(fullest[i]), 1 / k)
            several = poisson_tail(int(repeated[i]), float(chance[i]))
            for p, fullest_only in ((one, True), (several, False)):
                p = min(1.0, 2 * p * len(candidates))
                found = _covered(times, k, p, fullest_only) if p < SIGNIFICANCE else None
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
