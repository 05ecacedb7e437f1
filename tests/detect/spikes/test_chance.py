"""Tails against scipy's, over many counts and down to the smallest."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gradtrace.detect.spikes.chance import binomial_tail, poisson_tail


@pytest.mark.parametrize("n", [1, 2, 7, 60, 501])
@pytest.mark.parametrize("p", [1e-6, 0.003, 0.1, 0.5, 0.97])
def test_the_binomial_tail_is_that_of_scipy(n: int, p: float) -> None:
    """For every count from 0 to one more than all, to ten digits."""
    for count in np.unique(np.linspace(0, n + 1, 60).astype(int)).tolist():
        expected = float(stats.binom.sf(count - 1, n, p))
        assert binomial_tail(n, count, p) == pytest.approx(expected, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize("mean", [1e-9, 0.02, 0.9, 3.7, 50.0, 800.0, 20_000.0])
def test_the_poisson_tail_is_that_of_scipy(mean: float) -> None:
    """For counts from none to far above the mean, to nine digits."""
    deviation = mean**0.5
    near = np.linspace(mean - 8 * deviation, mean + 12 * deviation, 60)
    for count in {*range(12), *np.maximum(near, 0).astype(int).tolist()}:
        expected = float(stats.poisson.sf(count - 1, mean))
        assert poisson_tail(count, mean) == pytest.approx(expected, rel=1e-9, abs=1e-300), count


def test_the_smallest_tails_are_not_zero() -> None:
    """What 1 - cdf would round to 0 keeps its size."""
    assert binomial_tail(300, 200, 0.01) == pytest.approx(float(stats.binom.sf(199, 300, 0.01)))
    assert 0.0 < binomial_tail(300, 200, 0.01) < 1e-300
    assert poisson_tail(150, 0.5) == pytest.approx(float(stats.poisson.sf(149, 0.5)))
    assert 0.0 < poisson_tail(150, 0.5) < 1e-300


def test_what_is_certain_and_what_is_impossible() -> None:
    """Counts of 0 and beyond n, chances of 0 and 1."""
    assert binomial_tail(5, 0, 0.0) == binomial_tail(5, 5, 1.0) == poisson_tail(0, 0.0) == 1.0
    assert binomial_tail(5, 6, 1.0) == binomial_tail(5, 1, 0.0) == poisson_tail(1, 0.0) == 0.0


def test_a_tail_is_a_probability() -> None:
    """Rounding takes none above 1 or below 0."""
    for count in range(0, 1200, 7):
        assert 0.0 <= poisson_tail(count, 1000.0) <= 1.0
        assert 0.0 <= binomial_tail(1200, count, 0.8) <= 1.0
