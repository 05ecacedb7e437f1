"""Any tensor as flat real values, copied only where they lie with gaps."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from gradients import any_tensor, laid_out, noise
from ranks import alone
from torch import Tensor, nn
from truth import values_of

from gradtrace.measure.flat import (
    flatten,
    is_dense,
    is_partial,
    local,
    stored,
    whole,
)


def offsets(tensor: Tensor) -> list[int]:
    """Where each element lies, counted one by one."""
    return [
        sum(i * stride for i, stride in zip(index, tensor.stride(), strict=True))
        for index in itertools.product(*map(range, tensor.shape))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_dense_is_a_block_without_gaps_or_overlap(seed: int) -> None:
    """Whatever the order of the dimensions, as a count of all offsets says."""
    chance = random.Random(seed)
    found = {True: 0, False: 0}
    for _ in range(200):
        shape = [chance.randint(1, 4) for _ in range(chance.randint(0, 4))]
        tensor = torch.empty(shape).permute(chance.sample(range(len(shape)), len(shape)))
        tensor = laid_out(chance, tensor)
        where = offsets(tensor)
        dense = sorted(where) == list(range(len(where)))
        assert is_dense(tensor) == dense, (tensor.shape, tensor.stride())
        found[dense] += 1
    assert min(found.values()) > 20


@pytest.mark.parametrize("seed", range(3))
def test_flat_values_are_the_tensors(seed: int) -> None:
    """One dimension, real, of the same values, and where they lie if they lie densely."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    for _ in range(200):
        tensor = any_tensor(chance)
        flat = flatten(tensor)
        assert flat.dim() == 1 and flat.is_floating_point()
        expected = values_of(tensor)
        got = flat.double().numpy()
        assert np.array_equal(np.sort(got), np.sort(expected), equal_nan=True)
        if tensor.numel() and is_dense(tensor) and not (tensor.is_conj() or tensor.is_neg()):
            assert flat.data_ptr() == tensor.data_ptr()


def test_common_layouts_are_not_copied() -> None:
    """Contiguous, transposed and channels-last tensors are read where they lie, slices are not."""
    x = noise(4, 6, 5, 5)
    for tensor in (x, x.transpose(0, 1), x.to(memory_format=torch.channels_last)):
        assert flatten(tensor).data_ptr() == tensor.data_ptr()
    assert flatten(x[:, ::2]).data_ptr() != x.data_ptr()


def test_what_is_no_dtensor_is_its_own_part() -> None:
    """Tensors and parameters are handed back themselves."""
    for tensor in (noise(2, 2), nn.Parameter(noise(2)), torch.empty(2, device="meta")):
        assert local(tensor) is tensor


def test_of_a_dtensor_the_own_shard_is_read() -> None:
    """What this process holds, and never a collective."""
    dist: Any = torch.distributed
    if not dist.is_available():
        pytest.skip("this torch is built without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shard = noise(3, 2)
        whole = DTensor.from_local(shard, init_device_mesh("cpu", (1,)), [Shard(0)])
        found = local(whole)
        assert type(found) is Tensor and torch.equal(found, shard)
    finally:
        dist.destroy_process_group()


def test_sparse_tensors_store_their_values() -> None:
    """COO values are added up where an index stands twice; CSR and its like hold theirs."""
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 1, 2]]), torch.tensor([1.0, 2.0, 5.0]), (4,))
    for tensor in (twice, twice.coalesce()):
        found = stored(tensor)
        assert found is not None and found.tolist() == [3.0, 5.0]
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    for tensor in (dense.to_sparse_csr(), dense.to_sparse_csc()):
        found = stored(tensor)
        assert found is not None and sorted(found.tolist()) == [2.0, 3.0]
    assert stored(dense) is dense


def test_what_cannot_be_read_is_none() -> None:
    """An uncoalesced tensor on another device would have to wait; an unknown layout has none."""
    away = torch.sparse_coo_tensor(
        torch.zeros(1, 2, dtype=torch.long, device="meta"), torch.ones(2, device="meta"), (4,)
    )
    assert stored(away) is None
    assert stored(noise(2, 2).to_mkldnn()) is None


def test_a_distributed_tensor_is_what_lies_here() -> None:
    """Its local tensor itself; whole only where every rank holds all of it."""
    here = noise(3)
    with alone() as make, torch.enable_grad():
        for placement in ("replicate", "shard", "partial"):
            tensor = make(here, placement)
            assert local(tensor) is tensor._local_tensor
            assert local(tensor).grad_fn is None
            assert (whole(tensor) is not None) == (placement == "replicate")
            assert is_partial(tensor) == (placement == "partial")
    assert whole(here) is here and not is_partial(here)
    assert type(whole(nn.Parameter(here))) is Tensor
