"""Many small tensors in one matrix, against float64 sums of each."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gradients import any_tensor, noise
from torch import Tensor
from truth import Floats, compare, rows_of, statistics_of

from gradtrace.measure import blocks
from gradtrace.measure.blocks import Blocks
from gradtrace.measure.rows import NORM, ROW, N, statistics
from gradtrace.records import MOMENT_COLUMNS

CPU = torch.device("cpu")


def plan(tensors: Sequence[Tensor]) -> Blocks:
    return Blocks(range(len(tensors)), tensors, CPU)


def read(made: Blocks, tensors: Sequence[Tensor], *, norm_only: bool = False) -> dict[int, Floats]:
    with torch.no_grad():
        return rows_of(made.read(tensors, norm_only=norm_only))


def check(made: Blocks, tensors: Sequence[Tensor]) -> None:
    rows = read(made, tensors)
    assert list(rows) == list(range(len(tensors)))
    for position, tensor in enumerate(tensors):
        compare(MOMENT_COLUMNS, statistics(rows[position][None])[0], tensor)


@pytest.mark.parametrize("rows", [blocks.ROWS, 8])
@pytest.mark.parametrize("seed", range(3))
def test_any_tensors_equal_the_truth(seed: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all types, layouts and values, in one block or in many that share a matrix."""
    monkeypatch.setattr(blocks, "ROWS", rows)
    torch.manual_seed(seed)
    chance = random.Random(seed)
    for _ in range(15):
        tensors = [any_tensor(chance, largest=20) for _ in range(12)]
        tensors = [tensor for tensor in tensors if tensor.numel() <= rows * blocks.WIDTH // 2]
        check(plan(tensors), tensors)


def test_a_plan_serves_again() -> None:
    """What one step left in the matrix, NaN included, is not in the next step's numbers."""
    chance = random.Random(1)
    first = [any_tensor(chance) for _ in range(30)]
    made = plan(first)
    for shift in (0.0, 1.0):
        bad = [torch.full_like(tensor, math.nan) for tensor in first]
        read(made, bad)
        check(made, [(tensor.resolve_conj().resolve_neg() + shift) for tensor in first])


def test_sizes_around_a_row_are_told_apart() -> None:
    """Neighbours that end at a row's end, one before and one after, share no value."""
    width = blocks.WIDTH
    sizes = (1, width - 1, width, width + 1, 0, 2 * width, 3, blocks.SMALL)
    check(plan([noise(n) for n in sizes]), [noise(n) for n in sizes])


def test_a_bad_value_is_its_own_tensors() -> None:
    """Counted exactly there, and its neighbours' numbers stay right."""
    tensors = [noise(30, 7) for _ in range(5)]
    tensors[2][3, :4] = math.nan
    tensors[2][4, 0] = 0.0
    tensors[3][0, 0] = -math.inf
    rows = read(plan(tensors), tensors)
    assert [statistics(row[None])[0][5] for row in rows.values()] == [0, 0, 4, 1, 0]
    check(plan(tensors), tensors)


def test_only_the_norm_when_only_that_is_asked() -> None:
    """All else is NaN, but for the number of values."""
    tensors = [noise(30, 7) * scale for scale in (1.0, 1e-30, 1e30)]
    rows = read(plan(tensors), tensors, norm_only=True)
    for position, row in rows.items():
        expected = statistics_of(tensors[position])["norm"]
        assert row[NORM] == pytest.approx(expected, rel=1e-12, abs=0.0)
        assert row[N] == 210
        assert np.isnan(row[[c for c in range(len(ROW)) if c not in (N, NORM)]]).all()


def test_no_tensors_are_no_readings() -> None:
    """A plan of nothing takes no memory and gives nothing."""
    made = plan([])
    assert made.read([]) == [] and made._matrix.numel() == 0


def test_a_small_plan_takes_little_memory() -> None:
    """One block is only as high as it has to be; several share one matrix and one scratch."""
    assert plan([noise(10), noise(300)])._matrix.shape == (3, blocks.WIDTH)
    many = plan([torch.empty(blocks.SMALL)] * 40)
    assert many._matrix.shape == (blocks.ROWS, blocks.WIDTH) and len(many._blocks) > 1
