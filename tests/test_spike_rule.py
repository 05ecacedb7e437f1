"""docs/spike-rule.md tells the rule as it is: its formulas, written out slowly, give the scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradtrace.detect.spikes.baseline import Baseline
from gradtrace.detect.spikes.rule import SpikeRule


class Page:
    """The page's rule, term by term, from all values seen so far."""

    def __init__(self, rule: SpikeRule) -> None:
        self.rule = rule
        self.s = math.log(rule.false_alarm_rate) / math.log(1e-4)
        self.z: list[float | None] = []
        self.residuals: list[float] = []
        self.level = math.nan
        self.q = self.c = math.inf

    def score(self, value: float) -> float:
        """The score of the next value, which is accepted if it is below 1."""
        z = math.log(value)
        if not self.residuals:
            self.level = z
        score = 0.0
        if len(self.residuals) >= self.rule.warmup:
            score = max(0.0, (z - self.level) / (self.alarm() - self.level))
        self.z.append(z if score < 1 else None)
        if score < 1:
            self.learn(z)
        return score

    def learn(self, z: float) -> None:
        r = z - self.level
        self.residuals.append(r)
        n = len(self.residuals)
        self.level += max(2 / 41, 1 / n) * r
        if n >= self.rule.warmup and (n < 100 or n % 5 == 0):
            kept = np.asarray(self.residuals[-self.rule.window :])
            self.q = self.quantile(kept)
            self.c = self.calm(kept)

    def quantile(self, kept: np.ndarray) -> float:
        n = len(kept)
        ordered = np.sort(kept)
        k = max(8, int(0.25 * n))
        u, y = ordered[-k - 1], ordered[-k:] - ordered[-k - 1]
        i = np.arange(1, k + 1)
        a0, a1 = y.mean(), ((1 - (i - 0.35) / k) * y).mean()
        shape = 0.3 * min(max(2 - a0 / (a0 - 2 * a1), -0.5), 0.4) - 0.07
        scale = a0 * (1 - shape)
        return float(u + scale / shape * ((k / (n * self.rule.false_alarm_rate)) ** shape - 1))

    def calm(self, kept: np.ndarray) -> float:
        newest = kept[-100:]
        ordered = np.sort(newest)
        k = max(8, int(0.12 * len(newest)))
        u, y = ordered[-k - 1], ordered[-k:] - ordered[-k - 1]
        depth = math.log(k / (3 * self.rule.false_alarm_rate * len(newest)))
        c0 = u + np.median(y) / math.log(2) * depth
        wild = np.median(np.abs(kept[-20:])) / np.median(np.abs(kept))
        return float(max(1.0, wild) ** 2 * c0)

    def alarm(self) -> float:
        n, n0 = len(self.residuals), self.rule.warmup
        m = max(z for z in self.z[-99:] if z is not None)
        reaches = self.level + self.q - m - 1.22
        d = self.s * min(math.log(1.49) + 2 * max(0.0, reaches), math.log(2.95))
        if n < 100:
            unknown = math.log(4) + (n - n0) / (100 - n0) * (math.log(1.49) - math.log(4))
            d = max(d, unknown)
        a = max(m, self.level) + d
        if n >= 50 and self.c <= 0.35 and self.level + self.c + 0.2 * self.s < m:
            a = self.level + self.c + 0.2 * self.s
        return max(a, self.level + max(math.log(self.rule.min_ratio), self.s * math.log(1.49)))


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-6])
@pytest.mark.parametrize("spread", [0.03, 0.3, 1.0])
def test_formulas_of_the_page(rate: float, spread: float) -> None:
    """Noise, drift, spikes and an old peak get the scores that the page's formulas give."""
    generator = np.random.default_rng(0)
    logs = generator.normal(0, spread, 1600) + np.linspace(1.0, -1.0, 1600)
    logs[200::170] += 8 * spread + 1
    logs[25] += 0.9  # a peak of the warm-up that calm values outlive
    rule = SpikeRule(false_alarm_rate=rate)
    baseline, page = Baseline(rule), Page(rule)
    alarms = 0
    for value in np.exp(logs):
        verdict = baseline.update(float(value))
        assert verdict is not None
        assert page.score(float(value)) == pytest.approx(verdict.score, rel=1e-9, abs=1e-12)
        alarms += verdict.alarm
    assert alarms
