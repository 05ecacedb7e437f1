"""The rules that are in use elsewhere, written from their papers and documentation.

Each takes a series and returns the steps it flags. A value is judged before it joins its window.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

Rule = Callable[[Sequence[float]], list[int]]


def six_sigma(values: Sequence[float]) -> list[int]:
    """OLMo-core's `SkipStepOptimizer`: above mean + 6 std of the last 128, once 64 are there.

    Every value joins the window, spikes and Inf too.
    """
    window: deque[float] = deque(maxlen=128)
    found = []
    for step, value in enumerate(values):
        if len(window) >= 64:
            with np.errstate(invalid="ignore"):
                mean, std = float(np.mean(window)), float(np.std(window, ddof=1))
            if not value - mean <= 6 * std:
                found.append(step)
        window.append(value)
    return found


def three_times_mean(values: Sequence[float]) -> list[int]:
    """Lightning Fabric's `SpikeDetection`: three times the mean of the last 10; spikes stay out."""
    window: deque[float] = deque(maxlen=10)
    found = []
    for step, value in enumerate(values):
        mean = sum(window) / len(window) if window else math.nan
        if step >= 1 and (not math.isfinite(value) or value - mean >= 2 * mean):
            found.append(step)
        elif math.isfinite(value):
            window.append(value)
    return found


def twice_mean(values: Sequence[float]) -> list[int]:
    """LLM-Foundry's `LossSpikeDetector` without its patience: twice the mean of the last 100."""
    window: deque[float] = deque(maxlen=100)
    found = []
    for step, value in enumerate(values):
        if len(window) == 100 and value >= 2 * sum(window) / 100:
            found.append(step)
        window.append(value)
    return found


def ten_times_first(values: Sequence[float]) -> list[int]:
    """Megatron-LM's `--check-for-spiky-loss`: ten times the maximum of the first 100."""
    top = max((v for v in values[:100] if math.isfinite(v)), default=math.inf)
    return [step for step, value in enumerate(values) if step >= 100 and value > 10 * top]


def ema_z(values: Sequence[float], *, alpha: float = 0.97, threshold: float = 2.5) -> list[int]:
    """ZClip (Kumar et al. 2025): z > 2.5 over exponential moments, updated with clipped values."""
    first = np.asarray(values[:25], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        mean, variance = float(first.mean()), float(first.var())
    found = []
    for step, value in enumerate(values):
        if step < 25:
            continue
        std = math.sqrt(variance) if variance >= 0 else math.nan
        z = (value - mean) / (std + 1e-6)
        if z > threshold:
            found.append(step)
            value = mean + threshold**2 / z * std
        mean = alpha * mean + (1 - alpha) * value
        variance = alpha * variance + (1 - alpha) * (value - mean) ** 2
    return found


def cusum(values: Sequence[float], *, slack: float = 0.5, limit: float = 5.0) -> list[int]:
    """Page's one-sided CUSUM over standardized values (trainscope): sums z - 0.5, alarm at 5."""
    mean = variance = math.nan
    total = 0.0
    found = []
    for step, value in enumerate(values):
        if step == 0:
            mean, variance = value, 0.0
            continue
        if step > 20 and variance > 0:
            total = max(0.0, total + (value - mean) / math.sqrt(variance) - slack)
            if total > limit:
                found.append(step)
                total = 0.0
        difference = value - mean
        mean += 0.05 * difference
        variance = 0.95 * (variance + 0.05 * difference * difference)
    return found


def twice_largest(values: Sequence[float]) -> list[int]:
    """The plain rule to beat: above twice the largest of the last 100 accepted values."""
    window: deque[float] = deque(maxlen=100)
    found = []
    for step, value in enumerate(values):
        if not math.isfinite(value):
            continue
        if len(window) >= 20 and value > 2 * max(window):
            found.append(step)
        else:
            window.append(value)
    return found


RIVALS: dict[str, Rule] = {
    "mean + 6 std of 128": six_sigma,
    "3x mean of 10": three_times_mean,
    "2x mean of 100": twice_mean,
    "10x max of first 100": ten_times_first,
    "EMA z > 2.5": ema_z,
    "CUSUM": cusum,
    "2x max of 100": twice_largest,
}
