"""Periods: found through gaps and noise, not claimed on chance."""

from __future__ import annotations

import numpy as np
import pytest

from gradtrace.detect.spikes.period import find_period


@pytest.mark.parametrize(
    "k", [10, 11, 13, 17, 20, 25, 33, 47, 50, 64, 100, 128, 250, 500, 777, 1000]
)
def test_a_period_is_found_through_gaps_and_noise(k: int) -> None:
    """Spikes each k steps, a fifth of them missing and a third as many others mixed in."""
    for seed in range(10):
        rng = np.random.default_rng([k, seed])
        length = 12 * k + 200 if seed % 2 else max(40 * k, 2000)
        regular = np.arange(rng.integers(0, k), length, k)
        missing = rng.choice(len(regular), len(regular) // 5, replace=False)
        regular = np.delete(regular, missing)
        others = rng.integers(0, length, max(2, len(regular) // 3))
        found = find_period(np.concatenate([regular, others]).tolist())
        assert found is not None and found.steps == k
        assert found.phase == regular[0] % k
        assert found.hits >= min(len(regular), 150)


def test_no_period_is_claimed_on_random_arrivals() -> None:
    """Of 100 random series of arrivals, at most five look regular."""
    claimed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        length = int(rng.choice([1000, 10_000, 50_000]))
        claimed += find_period(rng.integers(0, length, rng.integers(5, 150)).tolist()) is not None
    assert claimed <= 5


def test_few_events_have_no_period() -> None:
    """Three events are always regular to somebody."""
    assert find_period([100, 200, 300]) is None
    assert find_period([]) is None
    assert find_period([5] * 10) is None


def test_a_multiple_is_not_taken_for_the_period() -> None:
    """Events every 25 steps also lie on a grid of 5 and, half of them, on one of 50."""
    found = find_period(list(range(3, 1000, 25)))
    assert found is not None
    assert (found.steps, found.phases, found.hits, found.slots) == (25, (3,), 40, 40)
    assert found.p_value < 1e-10


def test_several_things_that_come_back_share_a_period() -> None:
    """Six documents met once in each of four epochs of 125 steps."""
    phases = [7, 20, 55, 81, 82, 120]
    found = find_period([125 * epoch + phase for epoch in range(4) for phase in phases])
    assert found is not None
    assert found.steps == 125 and sorted(found.phases) == phases
    assert (found.hits, found.slots) == (24, 24)
