"""Layers that rose, each against its own recent norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from gradtrace.detect.spikes.layers import EWMA_SPAN, MIN_COUNT, MIN_RATIO, LayerLevels
from gradtrace.records import MOMENT_COLUMNS, LayerTable

NAMES = ("a", "b", "c")


def table(
    norms: Sequence[float], names: tuple[str, ...] = NAMES, bad: Sequence[int] = ()
) -> LayerTable:
    values = np.zeros((len(norms), len(MOMENT_COLUMNS)))
    values[:, MOMENT_COLUMNS.index("norm")] = norms
    values[: len(bad), MOMENT_COLUMNS.index("nonfinite")] = bad
    return LayerTable(names, values, MOMENT_COLUMNS)


def calm(steps: int = 40, *, spread: float = 0.0) -> LayerLevels:
    """Layers of norm 1, 10 and 100, with noise on the first."""
    levels, rng = LayerLevels(), np.random.default_rng(0)
    for _ in range(steps):
        levels.learn(table((math.exp(spread * rng.standard_normal()), 10.0, 100.0)))
    return levels


def test_the_layers_that_rose_come_largest_ratio_first() -> None:
    """With their norm and its ratio to their own level, not to each other's."""
    found = calm().rises(table((4.0, 10.0, 1000.0)))
    assert [rise.name for rise in found] == ["c", "a"]
    assert [rise.norm for rise in found] == [1000.0, 4.0]
    assert [rise.ratio for rise in found] == pytest.approx([10.0, 4.0])


def test_a_rise_is_beyond_the_least_ratio_and_the_layers_own_spread() -> None:
    """What a steady layer does not do, a restless one does every day."""
    steady, restless = calm(), calm(200, spread=0.5)
    assert steady.rises(table((0.99 * MIN_RATIO, 10.0, 100.0))) == []
    [rise] = steady.rises(table((1.01 * MIN_RATIO, 10.0, 100.0)))
    assert rise.name == "a"
    assert restless.rises(table((2.0, 10.0, 100.0))) == []
    assert [rise.name for rise in restless.rises(table((50.0, 10.0, 100.0)))] == ["a"]


def test_a_layer_that_is_not_finite_rose_without_limit() -> None:
    """Its ratio is Inf, and it comes first."""
    found = calm().rises(table((math.nan, 10.0, 1000.0), bad=(3, 0, 0)))
    assert [(rise.name, rise.ratio) for rise in found] == [
        ("a", math.inf),
        ("c", pytest.approx(10.0)),
    ]


def test_a_level_takes_a_few_steps() -> None:
    """Before MIN_COUNT of them nothing is compared."""
    high = table((9.0, 90.0, 900.0))
    assert calm(MIN_COUNT - 1).rises(high) == []
    assert len(calm(MIN_COUNT).rises(high)) == 3


def test_the_level_is_an_exponential_mean_of_logarithms() -> None:
    """As computed by hand: weight 1 / n at first, 2 / (span + 1) then."""
    rng = np.random.default_rng(1)
    norms = np.exp(rng.normal(0, 0.3, 90))
    levels = LayerLevels()
    level = math.log(norms[0])
    for n, norm in enumerate(norms, 1):
        levels.learn(table((norm,), ("a",)))
        level += max(2 / (EWMA_SPAN + 1), 1 / n) * (math.log(norm) - level)
    [rise] = levels.rises(table((100.0,), ("a",)))
    assert rise.ratio == pytest.approx(100.0 / math.exp(level))


def test_layers_may_come_and_go() -> None:
    """Known ones keep their level under their name; new ones begin; zeros and NaN teach nothing."""
    levels = calm()
    other = ("c", "new")
    assert levels.rises(table((1000.0, 5.0), other)) == []
    levels.learn(table((100.0, 5.0), other))
    assert [rise.name for rise in levels.rises(table((1000.0, 50.0), other))] == ["c"]
    for _ in range(10):
        levels.learn(table((0.0, math.nan), other))
    [rise] = levels.rises(table((1000.0, 50.0), other))
    assert rise.ratio == pytest.approx(10.0)
