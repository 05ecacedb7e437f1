"""How far one series may rise before it is a spike.

Values are compared as logarithms, so a ratio means the same for a loss of 0.01 and a norm of 1000.
The alarm stands a distance above the largest value of the last `PEAK` steps, which follows a series
through drift and restarts as a mean cannot. Two estimates of that distance are made, both by peaks
over threshold with an exponential tail in the logarithm, which is a power law in the value (Hill
1975; SPOT of Siffer et al. 2017 with its generalized Pareto shape at zero), and the smaller holds:

- Records: by how much values have exceeded the largest of the `PEAK` (and, more often seen, of the
  `SHORT`) values before them. The mean excess times log(1 / (PEAK * rate)).
- Surprises: value minus an exponential mean. The excess over their upper eighth, taken to the same
  depth. It is the median excess / log 2, which a few spikes that went unseen cannot inflate.

A value `RARER` times rarer than that among the surprises, and `FAR` above the level, is a spike
also below a peak: the first steps of a run are often higher than anything after them. That distance
grows with the unrest of the newest surprises.

Shape zero overstates tails that are lighter, so the surprises' quantile is taken at ten times the
rate. What is beyond the alarm never enters; NaN and Inf are not looked at. The constants were tuned
on one half of the runs in tests/benchmarks, which reports the other.

No alarm is raised during warm-up, so a spike there is accepted at first. When it is over, single
values far above those beside them are taken out again, lest they hide the spikes to come.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradtrace.detect.rule import SpikeRule
from gradtrace.records import Array

PEAK = 100
SHORT = 25
SPAN = 20
"""Values that the level mostly rests on."""
TAIL = 0.12
FEWEST = 8
MEMORY = 600
"""Values after which a record counts 1/e."""
PRIOR = 0.08
"""The mean excess, as a logarithm, of a series that has shown none yet."""
PRIOR_WEIGHT = 6
SHORT_WEIGHT = 8
SHORT_SHARE = 0.6
"""Excesses over the larger peak are that much smaller than over the short one."""
CAUTION = 1.2
NEAREST = math.log(1.42)
"""The least distance: no spike is closer than this to the largest recent value."""
RENEW = 5
"""Values after which the quantiles of the surprises are found anew; each one at the start."""
SETTLED = 64
"""Values after which the surprises alone may raise an alarm."""
FAR = math.log(1.5)
RARER = math.log(33.0)
UNSURE = math.log(2.0)
"""The least distance while fewer than PEAK values are known."""
BESIDE = 3
"""How many values either side a value of the warm-up is compared with."""
LONELY = math.log(3.0)
"""How far above all of those it is a spike; a falling loss never is."""
FARTHEST = math.log(2.6)
"""The largest distance at the default rate: a spike of three times the peak is never missed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a baseline thinks of a value.

    `level` is what was expected, `ratio` = value / level, `score` the distance from the level in
    units of the alarm's (1 = alarm; 0 below the level and while too little is known), `shifted`
    that so many alarms in a row make this the new level.
    """

    value: float
    level: float
    ratio: float
    score: float
    shifted: bool = False

    @property
    def alarm(self) -> bool:
        """Whether the value is a spike."""
        return self.score >= 1.0 and not self.shifted


class Baseline:
    """One series, fed in order; some 50 us a value, constant memory. One thread."""

    def __init__(self, rule: SpikeRule) -> None:
        self._rule = rule
        self._depth = math.log(1 / (PEAK * rule.false_alarm_rate))
        self._farthest = FARTHEST * max(1.0, self._depth / math.log(100))
        self._fed = 0
        self._count = 0
        self._level = math.nan
        self._peaks: Array = np.full(PEAK, -math.inf)
        self._peak = -math.inf
        self._short: deque[float] = deque(maxlen=SHORT)
        self._surprises: Array = np.empty(rule.window)
        self._quantile = self._rare = math.inf
        self._records = [0.0, 0.0]
        self._short_records = [0.0, 0.0]
        self._outside: list[float] = []
        self._first: list[float] = []

    def update(self, value: float) -> Verdict | None:
        """Judges a value, then learns from it unless it is a spike; None for NaN, Inf and <= 0."""
        self._fed += 1
        place = self._fed % PEAK
        self._peaks[place] = -math.inf
        if not 0.0 < value < math.inf:
            return None
        z = math.log(value)
        if math.isnan(self._level):
            self._level = z
        peak = float(self._peaks.max())
        if peak > -math.inf:
            self._peak = peak
        level = self._level
        score = 0.0
        if self._count >= self._rule.warmup:
            alarm = max(self._alarm(), level + math.log(self._rule.min_ratio))
            # The alarm is never below the level, for the least distance is above zero.
            score = max(0.0, (z - level) / (alarm - level))
        shown = math.exp(level)
        if score >= 1.0:
            self._outside.append(z)
            shifted = len(self._outside) >= self._rule.patience
            if shifted:
                self._shift()
            return Verdict(value, shown, value / shown, score, shifted)
        self._outside.clear()
        self._learn(z, place)
        if self._count <= self._rule.warmup + BESIDE:
            self._first.append(z)
            if self._count in (self._rule.warmup, self._rule.warmup + BESIDE):
                self._leave_out_lonely()
        return Verdict(value, shown, value / shown, score)

    def _alarm(self) -> float:
        """The logarithm from which on a value is a spike."""
        records = self._mean_excess() * self._depth * CAUTION
        surprises = self._level + self._quantile - self._peak
        distance = min(max(min(records, surprises), NEAREST), self._farthest)
        if self._count < PEAK:
            distance = max(distance, UNSURE)
        alarm = max(self._peak, self._level) + distance
        if self._count >= SETTLED:
            # What is far above all surprises is a spike even below a peak: the first steps of a
            # run are often higher than anything after them.
            alarm = min(alarm, self._level + max(self._rare, FAR))
        return alarm

    def _mean_excess(self) -> float:
        total, count = self._short_records
        short = (PRIOR * PRIOR_WEIGHT + total) / (PRIOR_WEIGHT + count)
        total, count = self._records
        return (total + SHORT_WEIGHT * SHORT_SHARE * short) / (count + SHORT_WEIGHT)

    def _learn(self, z: float, place: int) -> None:
        rule = self._rule
        if self._count >= rule.warmup:
            for records, peak in (
                (self._records, self._peak),
                (self._short_records, max(self._short)),
            ):
                records[0] *= 1 - 1 / MEMORY
                records[1] *= 1 - 1 / MEMORY
                if z > peak:
                    records[0] += z - peak
                    records[1] += 1
        surprise = z - self._level
        self._surprises[self._count % rule.window] = surprise
        self._count += 1
        self._level += surprise * max(2 / (SPAN + 1), 1 / self._count)
        self._peaks[place] = z
        self._short.append(z)
        if self._count >= rule.warmup and (self._count < PEAK or self._count % RENEW == 0):
            self._find_quantiles()

    def _leave_out_lonely(self) -> None:
        """Learns the first values anew without those that were spikes."""
        some = self._first
        good = [
            z
            for i, z in enumerate(some)
            if not BESIDE <= i < len(some) - 1
            or z <= max(some[i - BESIDE : i] + some[i + 1 : i + 1 + BESIDE]) + LONELY
        ]
        if len(good) == len(some):
            return
        self._first = []
        self._count = 0
        self._level = good[0]
        self._peak = -math.inf
        self._peaks[:] = -math.inf
        self._short.clear()
        self._records, self._short_records = [0.0, 0.0], [0.0, 0.0]
        for back, z in enumerate(reversed(good)):
            self._peaks[(self._fed - back) % PEAK] = z
        self._peak = max(good)
        for z in good:
            self._learn(z, self._fed % PEAK)
        self._first = good

    def _find_quantiles(self) -> None:
        """The surprise at ten times the false-alarm rate, and one RARER times rarer."""
        known = self._surprises[: min(self._count, self._rule.window)]
        beyond = min(max(FEWEST, int(TAIL * len(known))), len(known) - 1)
        # The partition puts the threshold first and everything above it behind.
        top = np.partition(known, len(known) - beyond - 1)[len(known) - beyond - 1 :]
        threshold = float(top[0])
        # The median of an exponential distribution is its mean times log 2.
        excess = (_median(top[1:]) - threshold) / math.log(2.0)
        depth = self._depth + math.log(TAIL / 0.1)
        self._quantile = threshold + excess * depth
        self._rare = (threshold + excess * (depth + RARER)) * self._unrest(known)

    def _unrest(self, known: Array) -> float:
        """How much wider the newest surprises are than all of them; 1 when they are not.

        By medians, which a spike that went unseen cannot move.
        """
        newest = np.arange(self._count - SPAN, self._count) % self._rule.window
        usual = _median(np.abs(known))
        return max(1.0, _median(np.abs(self._surprises[newest])) / usual) if usual else 1.0

    def _shift(self) -> None:
        """Takes the values beyond the alarm as the new level."""
        self._level = float(np.median(self._outside))
        self._peaks[:] = -math.inf
        self._peaks[: min(PEAK, len(self._outside))] = self._outside[-PEAK:]
        self._short.extend(self._outside)
        self._outside.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, as plain numbers and lists, fit for JSON."""
        return {
            "fed": self._fed,
            "count": self._count,
            "level": _or_none(self._level),
            "peaks": [_or_none(z) for z in self._peaks.tolist()],
            "peak": _or_none(self._peak),
            "short": list(self._short),
            "surprises": self._surprises[: min(self._count, self._rule.window)].tolist(),
            "quantiles": [_or_none(self._quantile), _or_none(self._rare)],
            "records": list(self._records),
            "short_records": list(self._short_records),
            "outside": list(self._outside),
            "first": list(self._first),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; raises ValueError when the rule's window was another."""
        surprises = np.asarray(state["surprises"], dtype=np.float64)
        count = int(state["count"])
        if len(surprises) != min(count, self._rule.window) or len(state["peaks"]) != PEAK:
            raise ValueError(
                f"the saved baseline holds {len(surprises)} values of {count}, which a window of "
                f"{self._rule.window} would not: load it with the SpikeRule it was saved with"
            )
        self._fed = int(state["fed"])
        self._count = count
        self._level = math.nan if state["level"] is None else float(state["level"])
        self._peaks[:] = [-math.inf if z is None else z for z in state["peaks"]]
        self._peak = -math.inf if state["peak"] is None else float(state["peak"])
        self._short = deque(state["short"], maxlen=SHORT)
        self._surprises[: len(surprises)] = surprises
        self._records = [float(x) for x in state["records"]]
        self._short_records = [float(x) for x in state["short_records"]]
        self._outside = [float(z) for z in state["outside"]]
        self._first = [float(z) for z in state["first"]]
        self._quantile, self._rare = [
            math.inf if z is None else float(z) for z in state["quantiles"]
        ]


def _or_none(z: float) -> float | None:
    return z if math.isfinite(z) else None


def _median(values: Array) -> float:
    """What np.median gives, in a tenth of its time for a few hundred values."""
    half = len(values) // 2
    ordered = np.partition(values, (half - 1, half) if half else 0)
    return float(ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2)
