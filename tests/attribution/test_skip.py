"""Samplers that leave out what is bad, and are otherwise the ones they wrap."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from gradtrace import BatchRef, SkipBatches, SkipSamples
from gradtrace.attribution.bad_samples import BadBatch, BadList, BadSample

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


SAMPLES = (BadSample(3, "measured", (5,), 1), BadSample(17, "recurring", (5, 9), 2))
BATCH = BadBatch(1, 2, 6, 6, "loss", 4.0)


@pytest.mark.parametrize(
    "bad",
    [
        BadList("run", 2, SAMPLES),
        SAMPLES,
        list(SAMPLES),
        BAD["samples"],
        {"samples": [3, 17], "batches": []},
        torch.tensor([3, 17]),
        [torch.tensor(3), torch.tensor(17)],
        np.array([3, 17]),
        [np.int64(3), np.int64(17)],
        (i for i in (3, 17)),
    ],
)
def test_bad_samples_in_any_form_are_left_out(bad: Any) -> None:
    """What `find_bad` returns, its samples, tensors and arrays mean the ids that they hold."""
    expected = [i for i in DATA if i not in (3, 17)]
    assert list(SkipSamples(SequentialSampler(DATA), bad)) == expected


@pytest.mark.parametrize(
    "bad",
    [
        BadList("run", 1, (), (BATCH,)),
        [BATCH],
        [BatchRef(1, 2, 6)],
        [(1, 2)],
        {(1, 2)},
        torch.tensor([[1, 2]]),
        np.array([[1, 2]]),
    ],
)
def test_bad_batches_in_any_form_are_left_out(bad: Any) -> None:
    """Pairs of ints, what `find_bad` returns and its batches mean epoch and batch index."""
    sampler = SkipBatches(BatchSampler(SequentialSampler(DATA), 5, False), bad)
    assert [len(list(sampler)) for _ in range(3)] == [4, 3, 4]


def test_indices_that_are_tensors_are_known() -> None:
    """A sampler that gives single values of a tensor gives their indices all the same."""
    sampler = SkipSamples(SubsetRandomSampler(torch.arange(20)), [3, 17])  # type: ignore[arg-type]
    assert sorted(map(int, sampler)) == [i for i in DATA if i not in (3, 17)]
    batches: Any = torch.arange(20).view(4, 5)
    left: list[Any] = list(SkipBatches(batches, [3, 17]))
    assert [batch.tolist()[0] for batch in left] == [5, 10]


LOADER = DataLoader(TensorDataset(torch.arange(20)), batch_size=5)
BATCHES = BatchSampler(SequentialSampler(DATA), 5, False)


@pytest.mark.parametrize(
    ("wrapper", "sampler", "message"),
    [
        (SkipSamples, LOADER, "got a DataLoader; expected a sampler of indices.*with it"),
        (SkipBatches, LOADER, "got a DataLoader; expected a batch sampler.*with it"),
        (SkipSamples, BATCHES, "got a BatchSampler; expected.*in SkipBatches"),
        (SkipSamples, SkipBatches(BATCHES, []), "got a SkipBatches; expected.*in SkipBatches"),
        (SkipSamples, [[1, 2], [3]], "gave the batch .1, 2.; expected an index.*SkipBatches"),
        (SkipBatches, RandomSampler(DATA), "got a RandomSampler; expected.*or use SkipSamples"),
        (SkipBatches, SkipSamples(DATA, []), "got a SkipSamples; expected.*or use SkipSamples"),
        (SkipBatches, range(5), "gave 0; expected a batch.*or use SkipSamples"),
        (SkipSamples, "bad.json", "got a str; expected a sampler"),
        (SkipBatches, None, "got a NoneType; expected a batch sampler"),
        (SkipBatches, 16, "got a int; expected a batch sampler"),
    ],
)
def test_what_is_no_sampler_of_the_kind_is_refused(
    wrapper: Any, sampler: Any, message: str
) -> None:
    """Loaders, batches for indices and indices for batches are told at the call, with a way out."""
    with pytest.raises(TypeError, match=f"(?s){message}"):
        wrapper(sampler, [3, 17])


@pytest.mark.parametrize("wrapper", [SkipSamples, SkipBatches])
def test_a_sampler_of_the_other_kind_is_told_when_it_gives(wrapper: Any) -> None:
    """What only the first value shows is a TypeError in plain words then."""
    wrong: Any = ([1, 2] for _ in range(3)) if wrapper is SkipSamples else iter(range(3))
    with pytest.raises(TypeError, match=r"gave .*; expected"):
        list(wrapper(wrong, [3]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "given as a NoneType; expected a file"),
        (7, "given as a int; expected a file"),
        (b"bad.json", "given as a bytes; expected a file"),
        (torch.tensor(7), "given as a Tensor; expected a file"),
        (RandomSampler(DATA), "given as a RandomSampler; expected a file"),
        ([1.5], "hold 1.5, a float; expected"),
        ([None], "hold None, a NoneType; expected"),
        ([True, False], "hold True, a bool; expected.*mask.nonzero"),
        (torch.tensor([True]), "mask.nonzero"),
        (np.array([1.0]), "hold 1.0, a float"),
        ([(1, 2, 3)], r"hold \(1, 2, 3\), a tuple"),
        ([("a", 2)], r"hold \('a', 2\), a tuple"),
        ([{"step": 3}], "a dict; expected"),
    ],
)
def test_wrong_lists_are_refused(bad: Any, message: str) -> None:
    """A list that could match nothing says what it holds and what is expected."""
    for make in (lambda: SkipSamples(DATA, bad), lambda: SkipBatches([DATA], bad)):
        with pytest.raises(TypeError, match=message):
            make()


def test_batches_alone_are_no_list_of_samples() -> None:
    """`SkipSamples` would leave nothing out, and names the class that does."""
    for bad in ([(1, 2)], BadList("run", 1, (), (BATCH,))):
        with pytest.raises(ValueError, match=r"no samples and 1 batches.*by SkipBatches"):
            SkipSamples(DATA, bad)


@pytest.mark.parametrize("batches", [False, True])
def test_ids_that_never_occur_are_told_once(
    batches: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """After one whole epoch a warning names an id of the list and one that did occur."""
    strange = ["7", "11"]
    made: Any = SkipBatches(BATCHES, strange) if batches else SkipSamples(DATA, strange)
    with caplog.at_level(logging.WARNING, logger="gradtrace"):
        next(iter(made))
        assert caplog.messages == []
        for _ in range(3):
            list(made)
    [message] = caplog.messages
    assert re.search(r"none of the 2 bad ids, such as '11', .* ids are such as (0|19)\b", message)


def test_ids_that_occur_are_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """One of the ids is enough; no ids, no data and what is left of an epoch prove nothing."""
    with caplog.at_level(logging.WARNING, logger="gradtrace"):
        for bad in ([3, 99], []):
            list(SkipSamples(DATA, bad))
            list(SkipBatches(BATCHES, bad))
        list(SkipSamples([], [99]))
        list(SkipBatches(BATCHES, [(1, 2)]))
        list(SkipBatches(BATCHES, [99], first_batch=2))
    assert caplog.messages == []
