"""Samplers that leave out what is bad, and are otherwise the ones they wrap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from gradtrace import SkipBatches, SkipSamples

DATA = list(range(20))
BAD = {
    "samples": [{"id": 3}, {"id": 17}],
    "batches": [{"epoch": 1, "batch_index": 0}],
}


def order(seed: int) -> RandomSampler:
    return RandomSampler(DATA, generator=torch.Generator().manual_seed(seed))


def test_the_order_is_the_wrapped_samplers_less_the_bad() -> None:
    """Same seed, same order, epoch after epoch."""
    plain, skipping = order(5), SkipSamples(order(5), [3, 17])
    for _ in range(3):
        assert list(skipping) == [index for index in plain if index not in (3, 17)]
    assert len(skipping) == 18


def test_the_file_of_bad_batches_is_read(tmp_path: Path) -> None:
    """A path, its content, or ids."""
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(BAD))
    expected = [i for i in DATA if i not in (3, 17)]
    for bad in (path, str(path), BAD, [3, 17], {3, 17}):
        assert list(SkipSamples(SequentialSampler(DATA), bad)) == expected


def test_a_loader_takes_it() -> None:
    """In a DataLoader, with workers, no bad sample arrives."""
    data = TensorDataset(torch.arange(20))
    loader = DataLoader(data, batch_size=4, sampler=SkipSamples(order(1), [3, 17]), num_workers=1)
    seen = [int(i) for (batch,) in loader for i in batch]
    assert sorted(seen) == [i for i in DATA if i not in (3, 17)]


def test_batches_with_a_bad_sample_and_listed_ones_are_left_out() -> None:
    """By content, and by epoch and index, counted over all batches as the trace counted them."""
    sampler = SkipBatches(BatchSampler(SequentialSampler(DATA), 5, False), BAD)
    first, second, third = list(sampler), list(sampler), list(sampler)
    # 3 is in the batch 0, 17 in the batch 3.
    assert first == [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert second == third == first
    by_index = SkipBatches(
        BatchSampler(SequentialSampler(DATA), 5, False),
        {"samples": [], "batches": [{"epoch": 1, "batch_index": 2}]},
    )
    assert [len(list(by_index)) for _ in range(3)] == [4, 3, 4]
    assert len(by_index) == 4


def test_a_resumed_run_counts_on() -> None:
    """With `first_epoch` and `first_batch` the indices are those of the interrupted run."""
    bad = {"samples": [], "batches": [{"epoch": 7, "batch_index": 3}]}
    rest = [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]  # what is left of epoch 7
    assert list(SkipBatches(rest, bad, first_epoch=7, first_batch=2)) == rest[:1]


def test_methods_of_the_wrapped_sampler_are_reached() -> None:
    """`set_epoch` shuffles anew; what is unknown raises as usual."""
    sampler = SkipSamples(DistributedSampler(DATA, num_replicas=2, rank=0), [3])  # type: ignore[arg-type]
    sampler.set_epoch(1)
    first = list(sampler)
    sampler.set_epoch(2)
    assert list(sampler) != first
    with pytest.raises(AttributeError):
        sampler.nothing_of_the_kind  # noqa: B018


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    """No sampler, no file, not such a file."""
    with pytest.raises(TypeError, match="something to iterate over"):
        SkipSamples(5, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gradtrace bad-batches"):
        SkipSamples(DATA, tmp_path / "missing.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="an object with"):
        SkipSamples(DATA, tmp_path / "list.json")
    with pytest.raises(ValueError, match="lacks 'batches'"):
        SkipSamples(DATA, {"samples": []})
