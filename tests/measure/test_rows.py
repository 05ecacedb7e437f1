"""Sums to statistics, against numpy on the values themselves."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from gradients import any_tensor
from truth import Floats, compare, values_of

from gradtrace.measure.rows import NORM, ROW, gather, l2, statistics, unscale
from gradtrace.records import ACTIVATION_COLUMNS, MOMENT_COLUMNS


def row_of(x: Floats) -> Floats:
    """The sums of some values."""
    with np.errstate(all="ignore"):
        sums = {
            "n": x.size,
            "sum": x.sum(),
            "norm": math.sqrt(np.sum(x * x)),
            "min": x.min(),
            "max": x.max(),
            "abs": np.abs(x).max(),
            "nonzero": np.count_nonzero(x),
            "bad": np.count_nonzero(~np.isfinite(x)),
        }
    return np.array([float(sums[name]) for name in ROW])


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_a_layer_are_one_population(seed: int) -> None:
    """Rows of the same layer, in any order, give the statistics of all its values together."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    for _ in range(60):
        tensors = [any_tensor(chance) for _ in range(5)]
        tensors = [tensor for tensor in tensors if tensor.numel()]
        parts: list[tuple[int, Floats]] = []
        for position, tensor in enumerate(tensors):
            values = values_of(tensor)
            cuts = sorted(chance.randrange(values.size + 1) for _ in range(3))
            parts += [(position, row_of(x)) for x in np.split(values, cuts) if x.size]
        if not parts:
            continue
        if chance.random() < 0.7:
            chance.shuffle(parts)
        positions, rows = gather(
            np.array([position for position, _ in parts]), np.array([row for _, row in parts])
        )
        assert positions.tolist() == list(range(len(tensors)))
        for row, tensor in zip(rows, tensors, strict=True):
            [ranged] = statistics(row[None], with_range=True)
            compare(ACTIVATION_COLUMNS, ranged, tensor)
            [plain] = statistics(row[None])
            assert np.array_equal(plain, ranged[: len(MOMENT_COLUMNS)], equal_nan=True)


def test_an_empty_layer_has_a_norm_of_zero_and_nothing_else() -> None:
    """No value has no mean, no spread, no largest and no share of zeros."""
    [found] = statistics(np.zeros((1, len(ROW))))
    told = dict(zip(MOMENT_COLUMNS, found.tolist(), strict=True))
    assert told.pop("norm") == 0.0 and told.pop("nonfinite") == 0.0
    assert all(math.isnan(value) for value in told.values())


def test_a_constant_has_no_spread() -> None:
    """Rounding of the sums is no standard deviation, and never NaN."""
    for value in (0.1, 1e-20, 1e20, -7.3, 123456.789):
        for n in (1, 3, 1000, 10**7):
            row = np.array(
                [n, n * value, math.sqrt(n) * abs(value), value, value, abs(value), n, 0]
            )
            [found] = statistics(row[None])
            assert found[2] == 0.0, (value, n)


def test_a_loss_scale_is_divided_out() -> None:
    """Sums, norms and limits shrink, counts do not; the loss scale may be no power of two."""
    values = np.array([-3.0, 0.0, 8.0])
    for scale in (1.0, 65536.0, 1000.0, 0.5):
        found = unscale(row_of(values * scale)[None].copy(), scale)
        assert found[0] == pytest.approx(row_of(values))


@pytest.mark.filterwarnings("error")
def test_a_loss_scale_of_zero_is_no_error() -> None:
    """Nothing is raised or warned of; what was zero is NaN, what was not is infinite."""
    [found] = unscale(row_of(np.array([0.0, 2.0]))[None], 0.0)
    assert math.isinf(found[NORM]) and found[0] == 2.0


def test_the_norm_of_all_is_that_of_one_long_vector() -> None:
    """Also where a square overflows, and NaN and Inf spread."""
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(n) * 10.0**k for n, k in ((5, 0), (70, 3), (1, -9))]
    rows = np.array([row_of(part) for part in parts])
    assert l2(rows) == pytest.approx(float(np.linalg.norm(np.concatenate(parts))), rel=1e-12)
    assert l2(np.zeros((0, len(ROW)))) == 0.0
    rows[1, NORM] = math.inf
    assert l2(rows) == math.inf
    rows[1, NORM] = math.nan
    assert math.isnan(l2(rows))
