"""How far one series may rise before it is a spike.

Values are compared as logarithms, so a ratio means the same for a loss of 0.01 and a norm of 1000.
The alarm stands a distance above the peak, the largest value of the last `PEAK` steps, which
follows a series through drift and restarts as a mean cannot. The distance comes from the surprises,
values minus an exponential mean of those before them: `reach` says how high the next value might
come at the rate of false alarms that is allowed. As long as that is not far above the peak,
anything `NEAREST` above the peak is a spike. Where the tail reaches further, with small batches for
instance, the distance grows with it, up to `FARTHEST`: no series hides a spike of three times its
peak.

The extrapolation of a few hundred values overstates the reach, hence `DOUBT`. A peak may also be
old news: the first steps of a run are often higher than anything after them, and a spike that went
unseen is a peak for `PEAK` steps. Therefore, while the newest surprises are `NARROW`, as a loss has
them, what is `BEYOND` their robust reach is a spike whatever the peak. The constants were tuned on
one half of the runs in tests/benchmarks, which reports the other.

What is beyond the alarm never enters; NaN and Inf are not looked at. No alarm is raised during
warm-up, so a spike there is accepted at first. When it is over, values far above those beside them
are taken out again, lest they hide the spikes to come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.detect.spikes.tail import median, reach, robust_reach
from gradtrace.records import Array

PEAK = 100
SPAN = 40
"""Values that the level mostly rests on."""
NEAREST = math.log(1.49)
"""The least distance above the peak, at the default rate of false alarms."""
FARTHEST = math.log(2.95)
"""The largest one."""
DEFAULT_RATE = 1e-4
DOUBT = 1.22
"""How far above the peak the tail may reach, as a logarithm, before the distance grows."""
SLOPE = 2.0
"""How fast it grows then."""
UNKNOWN = math.log(4.0)
"""The distance when nothing is known; it shrinks until PEAK values are."""
NARROW = 0.35
BEYOND = 0.2
OFTENER = 3.0
"""The robust reach is that of a rate so many times larger: it stands for ordinary values."""
SETTLED = 50
"""Values after which it may raise an alarm."""
NEWEST = 20
"""Surprises that tell whether the series is calm at present."""
RENEW = 5
"""Values after which the reach is found anew; each one at the start."""
BESIDE = 3
"""How many values either side a value of the warm-up is compared with."""
LONELY = math.log(3.0)
"""How far above those but one it is a spike; a falling loss never is."""


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
    """One series, fed in order; some 20 us a value, constant memory. One thread."""

    def __init__(self, rule: SpikeRule) -> None:
        self._rule = rule
        # Who wants fewer false alarms allows a greater distance, in proportion to the depth.
        self._stretch = math.log(rule.false_alarm_rate, DEFAULT_RATE)
        self._fed = 0
        self._outside: list[float] = []
        self._forget()

    def _forget(self) -> None:
        self._count = 0
        self._level = math.nan
        # The newest PEAK values by place; -Inf where one did not count.
        self._values: Array = np.full(PEAK, -math.inf)
        self._peak = -math.inf
        self._surprises: Array = np.empty(self._rule.window)
        self._reach = self._calm_reach = math.inf
        self._first: list[float] = []

    def update(self, value: float) -> Verdict | None:
        """Judges a value, then learns from it unless it is a spike; None for NaN, Inf and <= 0."""
        self._fed += 1
        place = self._fed % PEAK
        self._values[place] = -math.inf
        if not 0.0 < value < math.inf:
            return None
        z = math.log(value)
        if math.isnan(self._level):
            self._level = z
        peak = float(self._values.max())
        if peak > -math.inf:  # else nothing counted for so long that the last peak stays
            self._peak = peak
        level = self._level
        score = 0.0
        if self._count >= self._rule.warmup:
            # The alarm is never below the level, for the least distance is above zero.
            score = max(0.0, (z - level) / (self._alarm() - level))
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
        doubtful = self._level + self._reach - self._peak - DOUBT
        distance = self._stretch * min(NEAREST + max(0.0, SLOPE * doubtful), FARTHEST)
        if self._count < PEAK:
            known = (self._count - self._rule.warmup) / max(1, PEAK - self._rule.warmup)
            distance = max(distance, UNKNOWN + known * (NEAREST - UNKNOWN))
        alarm = max(self._peak, self._level) + distance
        if self._count >= SETTLED and self._calm_reach <= NARROW:
            unusual = self._level + self._calm_reach + self._stretch * BEYOND
            if unusual < self._peak:
                alarm = unusual
        least = max(math.log(self._rule.min_ratio), self._stretch * NEAREST)
        return max(alarm, self._level + least)

    def _learn(self, z: float, place: int) -> None:
        surprise = z - self._level
        self._surprises[self._count % self._rule.window] = surprise
        self._count += 1
        self._level += surprise * max(2 / (SPAN + 1), 1 / self._count)
        self._values[place] = z
        if self._count >= self._rule.warmup and (self._count < PEAK or self._count % RENEW == 0):
            self._find_reach()

    def _find_reach(self) -> None:
        rate, known = self._rule.false_alarm_rate, self._known()
        self._reach = reach(known, rate)
        newest = np.arange(self._count - min(PEAK, len(known)), self._count) % self._rule.window
        # How much wider the very newest surprises are than all of them, by medians.
        now, usual = median(np.abs(self._surprises[newest[-NEWEST:]])), median(np.abs(known))
        unrest = max(1.0, now / usual) if usual else 1.0
        self._calm_reach = unrest**2 * robust_reach(self._surprises[newest], OFTENER * rate)

    def _known(self) -> Array:
        return self._surprises[: min(self._count, self._rule.window)]

    def _leave_out_lonely(self) -> None:
        """Learns the first values anew without those that were spikes."""
        some = self._first
        good = [
            z
            for i, z in enumerate(some)
            if not BESIDE <= i < len(some) - 1
            # The second largest, for there may be another spike beside it.
            or z <= sorted(some[i - BESIDE : i] + some[i + 1 : i + 1 + BESIDE])[-2] + LONELY
        ]
        if len(good) == len(some):
            return
        self._forget()
        self._first, self._level = good, good[0]
        for back in range(len(good), 0, -1):
            self._learn(good[-back], (self._fed - back + 1) % PEAK)

    def _shift(self) -> None:
        """Takes the values beyond the alarm as the new level."""
        newest = np.asarray(self._outside[-PEAK:])
        self._level = float(np.median(newest))
        self._values[:] = -math.inf
        places = (self._fed - np.arange(len(newest))[::-1]) % PEAK
        self._values[places] = newest
        self._outside.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, as plain numbers and lists, fit for JSON."""
        return {
            "fed": self._fed,
            "count": self._count,
            "level": _or_none(self._level),
            "values": [_or_none(z) for z in self._values.tolist()],
            "peak": _or_none(self._peak),
            "surprises": self._known().tolist(),
            "reach": _or_none(self._reach),
            "calm_reach": _or_none(self._calm_reach),
            "outside": list(self._outside),
            "first": list(self._first),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; raises ValueError when the rule's window was another."""
        surprises = np.asarray(state["surprises"], dtype=np.float64)
        count = int(state["count"])
        if len(surprises) != min(count, self._rule.window) or len(state["values"]) != PEAK:
            raise ValueError(
                f"the saved baseline holds {len(surprises)} values of {count}, which a window of "
                f"{self._rule.window} would not: load it with the SpikeRule it was saved with"
            )
        self._fed = int(state["fed"])
        self._count = count
        self._level = _number(state["level"], math.nan)
        self._values[:] = [_number(z, -math.inf) for z in state["values"]]
        self._peak = _number(state["peak"], -math.inf)
        self._surprises[: len(surprises)] = surprises
        self._reach = _number(state["reach"], math.inf)
        self._calm_reach = _number(state["calm_reach"], math.inf)
        self._outside = [float(z) for z in state["outside"]]
        self._first = [float(z) for z in state["first"]]


def _or_none(z: float) -> float | None:
    return z if math.isfinite(z) else None


def _number(saved: float | None, missing: float) -> float:
    return missing if saved is None else float(saved)
