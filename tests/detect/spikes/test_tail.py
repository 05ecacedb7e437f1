"""How far a tail reaches, against distributions whose quantiles are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradtrace.detect.spikes.tail import exponential_tail_quantile, median, tail_quantile


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_an_exponential_tail_is_extrapolated(scale: float) -> None:
    """From 1,000 values to one in 10,000: within a quarter of the truth, on average."""
    rng = np.random.default_rng(0)
    truth = scale * math.log(1e4)
    for estimate in (tail_quantile, exponential_tail_quantile):
        found = [estimate(rng.exponential(scale, 1000), 1e-4) for _ in range(50)]
        assert float(np.mean(found)) == pytest.approx(truth, rel=0.25)


def test_a_heavier_tail_reaches_further() -> None:
    """The shape is estimated: of two samples of the same mean excess the heavier goes beyond."""
    rng = np.random.default_rng(1)
    light = rng.uniform(0, 2, 2000)
    heavy = rng.pareto(3.0, 2000)
    heavy *= light.mean() / heavy.mean()
    assert tail_quantile(heavy, 1e-4) > 2 * tail_quantile(light, 1e-4)
    assert tail_quantile(light, 1e-5) > tail_quantile(light, 1e-3)


def test_spikes_among_the_values_do_not_move_the_exponential_tail_quantile() -> None:
    """Three spikes in a hundred values: it grows by 3 in 4 at most, where the other one doubles."""
    rng = np.random.default_rng(2)
    values = 0.05 * rng.standard_normal(100)
    spiked = values.copy()
    spiked[[10, 50, 90]] = 2.0
    assert exponential_tail_quantile(spiked, 1e-4) < 1.75 * exponential_tail_quantile(values, 1e-4)
    assert tail_quantile(spiked, 1e-4) > 2 * tail_quantile(values, 1e-4)


def test_equal_values_reach_no_further() -> None:
    """A series without any spread has no tail."""
    for estimate in (tail_quantile, exponential_tail_quantile):
        assert estimate(np.full(50, 0.25), 1e-4) == 0.25


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_the_median_is_the_median(size: int) -> None:
    """What numpy gives, for odd and even numbers of values."""
    values = np.random.default_rng(size).standard_normal(size)
    assert median(values) == np.median(values)
