"""Upper quantiles beyond the largest value seen, from a model of the tail.

Peaks over threshold: of n values the k largest are the tail. The threshold u is the largest value
outside it, the exceedances y_1 <= ... <= y_k are the tail's values minus u. Once a distribution F
of the exceedances is fitted, the value that the next one exceeds with probability p is

    u + F^-1(1 - p n / k),        p < k / n,

since P(X > u) is estimated by k / n. Two models of F: a generalized Pareto distribution, and an
exponential one fitted so that a share of outliers among the exceedances does not move it.
"""

from __future__ import annotations

import math

import numpy as np

from gradtrace.records import Array

TAIL_FRACTION = 0.25
"""k / n: the share of the values that are modelled as the tail."""
ROBUST_TAIL_FRACTION = 0.12
"""The same for the exponential model, whose fit is worth less further in."""
MIN_EXCEEDANCES = 8
"""The least k."""
MIN_SHAPE, MAX_SHAPE = -0.5, 0.4
"""Bounds of the estimated shape xi_hat, whose variance is infinite from 0.5 on."""
SHAPE_WEIGHT = 0.3
SHAPE_OFFSET = -0.07
"""The shape is shrunk towards -0.1: xi = 0.3 xi_hat - 0.07 = -0.1 + 0.3 (xi_hat + 0.1), for a few
hundred values tell little of it: the standard error of xi_hat is 0.12 at k = 100. Tuned."""
EXPONENTIAL = 1e-6
"""A shape nearer to 0 than this is 0, where the quantile has another form."""


def tail_quantile(values: Array, probability: float) -> float:
    """The value that the next one exceeds with this probability, which may be far below 1 / n.

    A generalized Pareto distribution with shape xi and scale sigma over the exceedances, as in SPOT
    (Siffer et al. 2017), fitted by probability-weighted moments (Hosking and Wallis 1987):

        a0 = mean(y),   a1 = mean(y_i (k - i + 0.35) / k)
        xi_hat = 2 - a0 / (a0 - 2 a1),   clipped, then shrunk to xi
        sigma = a0 (1 - xi)                                    so that the mean stays a0
        quantile = u + sigma / xi ((k / (n p))^xi - 1),        u + sigma log(k / (n p)) if xi = 0

    `values`: float64 [n], n > MIN_EXCEEDANCES. Some 30 us for 1,000 values.
    """
    threshold, exceedances = _peaks(values, TAIL_FRACTION)
    k = len(exceedances)
    a0 = float(exceedances.mean())
    weights = (k - np.arange(1, k + 1) + 0.35) / k
    a1 = float((exceedances * weights).mean())
    # a0 <= 2 a1 is a tail heavier than the method can tell.
    shape = MAX_SHAPE if a0 <= 2 * a1 else 2 - a0 / (a0 - 2 * a1)
    shape = SHAPE_WEIGHT * min(max(shape, MIN_SHAPE), MAX_SHAPE) + SHAPE_OFFSET
    depth = math.log(k / len(values) / probability)
    scale = a0 * (1 - shape)
    standard = depth if abs(shape) < EXPONENTIAL else math.expm1(shape * depth) / shape
    return threshold + scale * standard


def exponential_tail_quantile(values: Array, probability: float) -> float:
    """The same if the tail is exponential; up to a third of it may be outliers.

        quantile = u + median(y) / log 2 * log(k / (n p))

    median(y) / log 2 is the scale of an exponential distribution. A spike among the values moves it
    little, where the mean follows it. A tail heavier than exponential is understated.
    """
    threshold, exceedances = _peaks(values, ROBUST_TAIL_FRACTION)
    depth = math.log(len(exceedances) / len(values) / probability)
    return threshold + median(exceedances) / math.log(2.0) * depth


def median(values: Array) -> float:
    """What np.median gives, in a tenth of its time for a few hundred values."""
    half = len(values) // 2
    ordered = np.partition(values, (half - 1, half) if half else 0)
    return float(ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def _peaks(values: Array, fraction: float) -> tuple[float, Array]:
    """The threshold u, and the exceedances in ascending order."""
    k = min(max(MIN_EXCEEDANCES, int(fraction * len(values))), len(values) - 1)
    # The partition puts the threshold first and everything above it behind.
    first = len(values) - k - 1
    top = np.sort(np.partition(values, first)[first:])
    return float(top[0]), top[1:] - top[0]
