"""How far one series may rise before it is a spike.

Of a series x_t > 0 the logarithms z_t = log x_t are judged, so that a ratio means the same for a
loss of 0.01 and a norm of 1,000. Before x_t comes, three things are known of the n values so far
that were no spikes:

- the level l, an exponentially weighted moving average (EWMA): l += alpha r at each value, with the
  residual r = z - l and alpha = max(2 / (EWMA_SPAN + 1), 1 / n);
- the newest `SpikeRule.window` residuals;
- the rolling maximum m of z over the last MAXIMUM_WINDOW steps.

With p = `SpikeRule.false_alarm_rate` and s = log p / log REFERENCE_RATE, x_t is a spike where z_t
reaches the alarm

    a = max(m, l) + d,    d = s min(D_MIN + max(0, TAIL_GAIN (l + q - m - TAIL_ALLOWANCE)), D_MAX).

The maximum follows a series through drift and restarts as a mean cannot, and ordinary values lie
below it. q is the (1 - p)-quantile of the residuals by peaks over threshold (`tail_quantile`): once
in 1 / p values one comes higher. While l + q is not far above the maximum, the distance d is s
D_MIN: at the default rate anything 1.49 times the maximum is a spike. Where the tail is heavier,
with small batches for instance, the distance grows with it, up to s D_MAX: no series hides a spike
of three times its maximum. TAIL_ALLOWANCE is what the extrapolation of a few hundred dependent
values overstates. While n < MAXIMUM_WINDOW, d is at least on the line from D_UNKNOWN, when the
warm-up ends, to D_MIN.

The maximum may be old news: the first steps of a run are often higher than anything after them, and
a spike that went unseen is a maximum for MAXIMUM_WINDOW steps. So there is a second quantile, of
the newest MAXIMUM_WINDOW residuals, that single outliers do not move (`exponential_tail_quantile`),

    c = max(1, v / w)^2 times their (1 - 3 p)-quantile, as if their tail were exponential,

where v and w are the medians of |r| over the newest DISPERSION_COUNT residuals and over all. While
c <= CALM_QUANTILE, as it is for a loss, the alarm is l + c + s CALM_MARGIN where that is below m.

In any case a >= l + max(log `SpikeRule.min_ratio`, s D_MIN). The constants were tuned on one half
of the runs in tests/benchmarks, which reports the other.

What is beyond the alarm never enters; NaN and Inf are not looked at. No alarm is raised during
warm-up, so a spike there is accepted at first. When it is over, values far above those beside them
are taken out again, lest they hide the spikes to come. `SpikeRule.patience` alarms in a row are a
new level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.detect.spikes.tail import exponential_tail_quantile, median, tail_quantile
from gradtrace.records import Array

MAXIMUM_WINDOW = 100
"""Steps that the rolling maximum m is of."""
EWMA_SPAN = 40
"""The level's weight of the newest value is alpha = 2 / (EWMA_SPAN + 1); 1 / n at first."""
REFERENCE_RATE = 1e-4
"""The rate of false alarms that the distances below are meant for, where s = 1."""
D_MIN = math.log(1.49)
"""The least distance of the alarm above the maximum."""
D_MAX = math.log(2.95)
"""The largest one."""
D_UNKNOWN = math.log(4.0)
"""The distance at the end of the warm-up."""
TAIL_ALLOWANCE = 1.22
"""How far above the maximum the tail quantile may lie before the distance grows."""
TAIL_GAIN = 2.0
"""How fast it grows then."""
CALM_QUANTILE = 0.35
"""A series whose exponential tail quantile c is no larger is calm."""
CALM_MARGIN = 0.2
"""Distance of a calm series' alarm above l + c."""
CALM_RATE_FACTOR = 3.0
"""c is exceeded at a rate of 3 p: it stands for ordinary values, not for the alarm."""
CALM_COUNT = 50
"""Values after which a series may be found calm."""
DISPERSION_COUNT = 20
"""Newest residuals that tell whether the series is calm at present."""
REFIT_EVERY = 5
"""Values after which the quantiles are fitted anew; each one until MAXIMUM_WINDOW are known."""
NEIGHBOURS = 3
"""How many values either side a value of the warm-up is compared with."""
OUTLIER_DISTANCE = math.log(3.0)
"""How far above the second largest of them it is a spike; a falling loss never is."""
RENAMED = {
    "peak": "maximum",
    "surprises": "residuals",
    "reach": "quantile",
    "calm_reach": "calm_quantile",
}
"""Keys of saved states, as they were called before; checkpoints hold them."""


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
        # s: who wants fewer false alarms allows a greater distance, in proportion to the depth.
        self._scale = math.log(rule.false_alarm_rate, REFERENCE_RATE)
        self._fed = 0
        self._outside: list[float] = []
        self._forget()

    def _forget(self) -> None:
        self._count = 0
        self._level = math.nan
        # The newest MAXIMUM_WINDOW values by place; -Inf where one did not count.
        self._values: Array = np.full(MAXIMUM_WINDOW, -math.inf)
        self._maximum = -math.inf
        self._residuals: Array = np.empty(self._rule.window)
        self._quantile = self._calm_quantile = math.inf
        self._first: list[float] = []

    def update(self, value: float) -> Verdict | None:
        """Judges a value, then learns from it unless it is a spike; None for NaN, Inf and <= 0."""
        self._fed += 1
        place = self._fed % MAXIMUM_WINDOW
        self._values[place] = -math.inf
        if not 0.0 < value < math.inf:
            return None
        z = math.log(value)
        if math.isnan(self._level):
            self._level = z
        maximum = float(self._values.max())
        if maximum > -math.inf:  # else nothing counted for so long that the last one stays
            self._maximum = maximum
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
        if self._count <= self._rule.warmup + NEIGHBOURS:
            self._first.append(z)
            if self._count in (self._rule.warmup, self._rule.warmup + NEIGHBOURS):
                self._leave_out_outliers()
        return Verdict(value, shown, value / shown, score)

    def _alarm(self) -> float:
        """The logarithm from which on a value is a spike: a."""
        level, maximum, scale = self._level, self._maximum, self._scale
        beyond = level + self._quantile - maximum - TAIL_ALLOWANCE
        distance = scale * min(D_MIN + max(0.0, TAIL_GAIN * beyond), D_MAX)
        if self._count < MAXIMUM_WINDOW:
            warmup = self._rule.warmup
            known = (self._count - warmup) / max(1, MAXIMUM_WINDOW - warmup)
            distance = max(distance, D_UNKNOWN + known * (D_MIN - D_UNKNOWN))
        alarm = max(maximum, level) + distance
        if self._count >= CALM_COUNT and self._calm_quantile <= CALM_QUANTILE:
            calm = level + self._calm_quantile + scale * CALM_MARGIN
            if calm < maximum:
                alarm = calm
        return max(alarm, level + max(math.log(self._rule.min_ratio), scale * D_MIN))

    def _learn(self, z: float, place: int) -> None:
        residual = z - self._level
        self._residuals[self._count % self._rule.window] = residual
        self._count += 1
        self._level += residual * max(2 / (EWMA_SPAN + 1), 1 / self._count)
        self._values[place] = z
        if self._count < self._rule.warmup:
            return
        if self._count < MAXIMUM_WINDOW or self._count % REFIT_EVERY == 0:
            self._fit()

    def _fit(self) -> None:
        """Both quantiles of the residuals, q and c."""
        rate, known = self._rule.false_alarm_rate, self._known()
        self._quantile = tail_quantile(known, rate)
        count = min(MAXIMUM_WINDOW, len(known))
        newest = self._residuals[np.arange(self._count - count, self._count) % self._rule.window]
        now, usual = median(np.abs(newest[-DISPERSION_COUNT:])), median(np.abs(known))
        unrest = max(1.0, now / usual) if usual else 1.0
        calm = exponential_tail_quantile(newest, CALM_RATE_FACTOR * rate)
        self._calm_quantile = unrest**2 * calm

    def _known(self) -> Array:
        return self._residuals[: min(self._count, self._rule.window)]

    def _leave_out_outliers(self) -> None:
        """Learns the first values anew without those that were spikes."""
        some = self._first

        def ordinary(i: int) -> bool:
            if not NEIGHBOURS <= i < len(some) - 1:
                return True
            beside = sorted(some[i - NEIGHBOURS : i] + some[i + 1 : i + 1 + NEIGHBOURS])
            # The second largest, for there may be another spike beside it.
            return some[i] <= beside[-2] + OUTLIER_DISTANCE

        good = [z for i, z in enumerate(some) if ordinary(i)]
        if len(good) == len(some):
            return
        self._forget()
        self._first, self._level = good, good[0]
        for back in range(len(good), 0, -1):
            self._learn(good[-back], (self._fed - back + 1) % MAXIMUM_WINDOW)

    def _shift(self) -> None:
        """Takes the values beyond the alarm as the new level."""
        newest = np.asarray(self._outside[-MAXIMUM_WINDOW:])
        self._level = float(np.median(newest))
        self._values[:] = -math.inf
        places = (self._fed - np.arange(len(newest))[::-1]) % MAXIMUM_WINDOW
        self._values[places] = newest
        self._outside.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, as plain numbers and lists, fit for JSON."""
        return {
            "fed": self._fed,
            "count": self._count,
            "level": _or_none(self._level),
            "values": [_or_none(z) for z in self._values.tolist()],
            "maximum": _or_none(self._maximum),
            "residuals": self._known().tolist(),
            "quantile": _or_none(self._quantile),
            "calm_quantile": _or_none(self._calm_quantile),
            "outside": list(self._outside),
            "first": list(self._first),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, also of older versions.

        Raises ValueError when the rule's window was another.
        """
        state = {RENAMED.get(key, key): value for key, value in state.items()}
        residuals = np.asarray(state["residuals"], dtype=np.float64)
        count = int(state["count"])
        expected = min(count, self._rule.window), MAXIMUM_WINDOW
        if (len(residuals), len(state["values"])) != expected:
            raise ValueError(
                f"the saved baseline holds {len(residuals)} values of {count}, which a window of "
                f"{self._rule.window} would not: load it with the SpikeRule it was saved with"
            )
        self._fed = int(state["fed"])
        self._count = count
        self._level = _number(state["level"], math.nan)
        self._values[:] = [_number(z, -math.inf) for z in state["values"]]
        self._maximum = _number(state["maximum"], -math.inf)
        self._residuals[: len(residuals)] = residuals
        self._quantile = _number(state["quantile"], math.inf)
        self._calm_quantile = _number(state["calm_quantile"], math.inf)
        self._outside = [float(z) for z in state["outside"]]
        self._first = [float(z) for z in state["first"]]


def _or_none(z: float) -> float | None:
    return z if math.isfinite(z) else None


def _number(saved: float | None, missing: float) -> float:
    return missing if saved is None else float(saved)
