"""Tensors that come one at a time, in chunks, against float64 sums of all their values."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from gradients import CASES, any_tensor, noise
from ranks import alone
from torch import Tensor, nn
from truth import compare, rows_of, statistics_of

from gradtrace.measure import chunks
from gradtrace.measure.chunks import Accumulator, Scratch, is_measurable
from gradtrace.measure.rows import MAX, MIN, NORM, ROW, N, statistics
from gradtrace.records import ACTIVATION_COLUMNS, Array


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def measured(tensors: list[Tensor]) -> list[Array]:
    """The statistics of each, measured by one accumulator."""
    accumulator = Accumulator(Scratch())
    with torch.no_grad():
        assert all(accumulator.add(position, tensor) for position, tensor in enumerate(tensors))
    rows = rows_of([accumulator.reading()])
    assert list(rows) == list(range(len(tensors)))
    return list(statistics(np.array(list(rows.values())), with_range=True))


def check(tensors: list[Tensor]) -> None:
    for tensor, found in zip(tensors, measured(tensors), strict=True):
        if tensor.numel():
            compare(ACTIVATION_COLUMNS, found, tensor)
        else:
            assert found[0] == 0.0 and math.isnan(found[1])


@pytest.mark.parametrize("case", CASES)
def test_every_kind_equals_the_truth(case: str) -> None:
    """Each listed type, layout and size, on its own."""
    check([CASES[case]()])


@pytest.mark.parametrize("size", [chunks.CHUNK, 64, 7])
@pytest.mark.parametrize("seed", range(3))
def test_any_tensors_equal_the_truth(seed: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn at random, several at a time, whole or in many chunks."""
    monkeypatch.setattr(chunks, "CHUNK", size)
    torch.manual_seed(seed)
    chance = random.Random(seed)
    for _ in range(30):
        check([any_tensor(chance) for _ in range(4)])


@pytest.mark.parametrize("size", [chunks.CHUNK, 64])
@pytest.mark.parametrize("seed", range(3))
def test_an_accelerators_chunks_equal_the_truth(
    seed: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan that never looks at a value, run on a CPU; float32 squares overflow in it."""
    monkeypatch.setattr(chunks, "CHUNK", size)
    monkeypatch.setattr(chunks, "_host_cells", lambda x, scratch: chunks._accelerator_cells(x))
    torch.manual_seed(seed)
    chance = random.Random(seed)
    for _ in range(30):
        check([any_tensor(chance, huge=False) for _ in range(4)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_bad_value_spoils_its_own_chunk_only(
    bad: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its count is exact and the zeros of all chunks are still counted."""
    monkeypatch.setattr(chunks, "CHUNK", 16)
    tensor = noise(100).to(dtype)
    tensor[[3, 40, 41]] = bad
    tensor[[7, 42, 99]] = 0.0
    [found] = measured([tensor])
    told = dict(zip(ACTIVATION_COLUMNS, found.tolist(), strict=True))
    assert told["nonfinite"] == 3.0 and told["zero_fraction"] == pytest.approx(0.03)
    compare(ACTIVATION_COLUMNS, found, tensor)


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e-18, 1e18, 1e20, 1e38])
def test_squares_beyond_float32_are_right(scale: float) -> None:
    """Values whose squares vanish or overflow have their norm and spread all the same."""
    check([(noise(500).double() * scale).clamp(-3e38, 3e38).float()])


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-22, 1e-20])
def test_squares_that_vanish_are_noticed_where_the_sum_is_zero(scale: float) -> None:
    """Values that cancel each other out hide that their squares were lost."""
    half = (noise(250).double() * scale).float()
    check([torch.cat([half, -half])])


def test_a_spread_far_below_the_mean_is_right() -> None:
    """Float32 sums would lose it: mean / std from 10 to 1,000."""
    for ratio in (10.0, 30.0, 95.0, 1000.0):
        tensor = noise(3000) + ratio
        [found] = measured([tensor])
        assert found[2] == pytest.approx(statistics_of(tensor)["std"], rel=1e-3), ratio


def test_missing_entries_of_a_sparse_tensor_are_zeros() -> None:
    """They count in every statistic; where an index stands twice its values are one."""
    index = torch.tensor([[0, 2, 2, 17], [1, 0, 0, 3]])
    some = torch.sparse_coo_tensor(index, torch.tensor([1.0, -2.0, 3.0, 0.5]), (20, 6))
    check([some, some.coalesce(), some.to_dense().to_sparse_csr(), some.to(torch.float16)])


def test_a_sparse_tensor_may_hold_all_its_entries() -> None:
    """Then there is no zero among them, and its least value is its own."""
    check([(torch.rand(4, 5) + 1).to_sparse()])


def test_only_the_norm_when_only_that_is_asked() -> None:
    """Right for any size of values, on a CPU and by the other plan; all else is NaN."""
    with torch.no_grad():
        for scale in (1.0, 1e-30, 1e30):
            accumulator = Accumulator(Scratch())
            tensors = [noise(300) * scale, noise(300).double() * scale, noise(300).bfloat16()]
            for position, tensor in enumerate(tensors):
                accumulator.add(position, tensor, norm_only=True)
            for position, row in rows_of([accumulator.reading()]).items():
                expected = statistics_of(tensors[position])["norm"]
                assert row[NORM] == pytest.approx(expected, rel=1e-5, abs=0.0) and row[N] == 300
                others = [c for c in range(len(ROW)) if c not in (N, NORM)]
                assert np.isnan(row[others]).all()


def test_a_tensor_may_have_several_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many share what was measured last, each has it once, in all its chunks."""
    monkeypatch.setattr(chunks, "CHUNK", 16)
    tensor = noise(50)
    accumulator = Accumulator(Scratch())
    with torch.no_grad():
        accumulator.add(0, noise(20))
        accumulator.add(1, tensor)
    for position in (2, 3, 4):
        accumulator.again(position)
    rows = rows_of([accumulator.reading()])
    for position in (1, 2, 3, 4):
        compare(ACTIVATION_COLUMNS, statistics(rows[position][None], with_range=True)[0], tensor)


def test_what_cannot_be_read_is_refused() -> None:
    """It leaves no row, and is told by False; an empty accumulator is false itself."""
    accumulator = Accumulator(Scratch())
    assert not accumulator.add(0, noise(2, 2).to_mkldnn())
    assert not accumulator
    accumulator.add(0, noise(2))
    assert accumulator


def test_buffers_are_shared_by_use() -> None:
    """One per device, dtype and use, never written by two uses; those of inference mode, too."""
    scratch = Scratch()
    like = torch.zeros(3)
    with torch.inference_mode():
        first = scratch.get(like, torch.float32, "a", 10)
        zero, unknown = scratch.zero(like), scratch.unknown(like)
    assert not (first.is_inference() or zero.is_inference() or unknown.is_inference())
    assert first.shape == (10,)
    assert scratch.get(like, torch.float32, "a", chunks.CHUNK).data_ptr() == first.data_ptr()
    others = (("b", torch.float32), ("a", torch.float64))
    for use, dtype in others:
        other = scratch.get(like, dtype, use, 10)
        assert other.data_ptr() != first.data_ptr() and other.dtype is dtype
    assert float(scratch.zero(like)) == 0.0 and scratch.zero(like) is zero
    assert math.isnan(float(scratch.unknown(like))) and scratch.unknown(like) is unknown


def test_the_range_is_that_of_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least and largest value may stand in different chunks."""
    monkeypatch.setattr(chunks, "CHUNK", 4)
    accumulator = Accumulator(Scratch())
    accumulator.add(0, torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, -9]))
    [row] = rows_of([accumulator.reading()]).values()
    assert (row[MIN], row[MAX]) == (-9.0, 8.0)


def test_real_and_complex_numbers_can_be_measured() -> None:
    """Integers, truths and what is no tensor cannot."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64):
        assert is_measurable(torch.zeros(2, dtype=dtype))
    assert is_measurable(nn.Parameter(torch.zeros(2)))
    for value in (torch.zeros(2, dtype=torch.long), torch.zeros(2) > 0, 1.0, None, [1.0]):
        assert not is_measurable(value)


def test_a_summand_has_a_row_without_numbers() -> None:
    """Only a collective could tell them; a shard has those of what lies here."""
    accumulator = Accumulator(Scratch())
    here = noise(2, 3)
    with alone() as make, torch.no_grad():
        assert accumulator.add(0, make(here, "partial"))
        assert accumulator.add(1, make(here, "shard"))
        rows = rows_of([accumulator.reading()])
    assert np.isnan(statistics(rows[0][None], with_range=True)).all()
    compare(ACTIVATION_COLUMNS, statistics(rows[1][None], with_range=True)[0], here)


def test_what_cannot_be_read_shares_no_numbers() -> None:
    """Another name of it does not get those of the tensor before."""
    accumulator = Accumulator(Scratch())
    accumulator.add(0, noise(2))
    assert not accumulator.add(1, noise(2, 2).to_mkldnn())
    accumulator.again(2)
    assert set(rows_of([accumulator.reading()])) == {0}
