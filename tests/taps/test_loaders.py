"""Each step knows the samples of the batch it consumed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from gradtrace import BatchRef, Trace, gradtrace
from gradtrace.taps import loaders


class Numbers(TensorDataset):
    """Sample i is the number i."""

    def __init__(self, n: int) -> None:
        super().__init__(torch.arange(n, dtype=torch.float32).view(-1, 1))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for k in range(12):
            yield torch.tensor([float(k)])


def consume(loader: DataLoader[Any], *, epochs: int = 2, stop: int | None = None) -> Any:
    """Trains over the loader; what each step really consumed, and the trace."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    truth = []
    with gradtrace(model, loader=loader, directory=None) as trace:
        for epoch in range(epochs):
            for k, batch in enumerate(loader):
                x = batch[0] if isinstance(batch, (list, tuple)) else batch
                x = x.view(-1, 1)
                optimizer.zero_grad()
                model(x).sum().backward()
                optimizer.step()
                truth.append((epoch, k, tuple(int(v) for v in x.flatten().tolist())))
                if k == stop:
                    break
    return truth, trace


def check(truth: list[tuple[int, int, tuple[int, ...]]], trace: Trace) -> None:
    refs = [record.batches for record in trace.steps]
    assert refs == [
        (BatchRef(epoch, k, ordinal, ids),) for ordinal, (epoch, k, ids) in enumerate(truth)
    ]


def make(name: str, workers: int) -> DataLoader[Any]:
    data = Numbers(22)
    common: dict[str, Any] = {"num_workers": workers}
    if name == "sequential":
        return DataLoader(data, batch_size=4, **common)
    if name == "shuffled":
        return DataLoader(data, batch_size=4, shuffle=True, drop_last=True, **common)
    if name == "weighted":
        sampler = WeightedRandomSampler(torch.rand(22).tolist(), 16)
        return DataLoader(data, batch_size=4, sampler=sampler, **common)
    if name == "distributed":
        spread: Any = DistributedSampler(data, num_replicas=2, rank=1, shuffle=True)
        return DataLoader(data, batch_size=4, sampler=spread, **common)
    if name == "batch_sampler":
        batches = BatchSampler(RandomSampler(data), 5, drop_last=False)
        return DataLoader(data, batch_sampler=batches, **common)
    if name == "no_batches":
        return DataLoader(data, batch_size=None, sampler=SequentialSampler(data), **common)
    if name == "collate":
        return DataLoader(data, batch_size=4, shuffle=True, collate_fn=first_column, **common)
    raise AssertionError(name)


def first_column(samples: list[Any]) -> torch.Tensor:
    return torch.stack([sample[0] for sample in samples])


KINDS = (
    "sequential",
    "shuffled",
    "weighted",
    "distributed",
    "batch_sampler",
    "no_batches",
    "collate",
)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", KINDS)
def test_sample_ids_are_those_of_the_consumed_batch(name: str, workers: int) -> None:
    """Whatever samples and batches are drawn by, ids, epoch and index are those consumed."""
    check(*consume(make(name, workers)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_early_break_leaves_nothing_over(workers: int) -> None:
    """After a break, batches drawn ahead are forgotten, and the next epoch starts at index 0."""
    check(*consume(make("shuffled", workers), epochs=3, stop=1))


def test_persistent_workers() -> None:
    """Workers that stay from epoch to epoch begin a new epoch each time."""
    loader = DataLoader(
        Numbers(22), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True
    )
    check(*consume(loader, epochs=3, stop=3))
    assert type(loader._iterator).__name__ == "_MultiProcessingDataLoaderIter"
    del loader


def test_workers_end_with_their_loader() -> None:
    """Nothing of an ended trace keeps persistent workers until a garbage collection finds them."""
    loader = DataLoader(Numbers(4), batch_size=2, num_workers=1, persistent_workers=True)
    gc.collect()
    gc.disable()
    try:
        consume(loader)
        iterator = weakref.ref(loader._iterator)
        del loader
        assert iterator() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_batches_out_of_order() -> None:
    """When workers may overtake each other, ids still belong to the delivered batch."""
    loader = DataLoader(Numbers(40), batch_size=4, shuffle=True, num_workers=2, in_order=False)
    check(*consume(loader))


def test_a_subset_gives_its_own_indices() -> None:
    """Indices are those the sampler drew: positions in the subset that the loader was given."""
    loader = DataLoader(Subset(Numbers(22), range(10, 20)), batch_size=5)
    _, trace = consume(loader, epochs=1)
    assert [r.batches[0].sample_ids for r in trace.steps] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterable_dataset_has_numbers_and_no_ids(workers: int) -> None:
    """A stream without indices still gives epoch and batch number."""
    _, trace = consume(DataLoader(Stream(), batch_size=3, num_workers=workers))
    found = [record.batches[0] for record in trace.steps]
    assert [(b.epoch, b.batch_index) for b in found] == [(e, k) for e in (0, 1) for k in range(4)]
    assert all(b.sample_ids is None for b in found)


def test_own_ids_come_from_the_batch() -> None:
    """`sample_ids` turns a batch into the user's ids; arrays become plain values."""
    loader = DataLoader(Numbers(6), batch_size=2)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    makers = [
        (lambda batch: [f"doc-{int(v)}" for v in batch[0].flatten()], ("doc-0", "doc-1")),
        (lambda batch: batch[0].flatten().long(), (0, 1)),
        (lambda batch: batch[0].flatten().long().numpy(), (0, 1)),
        (lambda batch: "one document", ("one document",)),
        (lambda batch: None, None),
    ]
    for make_ids, expected in makers:
        with gradtrace(model, loader=loader, sample_ids=make_ids, directory=None) as trace:
            for (x,) in loader:
                model(x).sum().backward()
                optimizer.step()
        assert trace.steps[0].batches[0].sample_ids == expected


def test_any_iterable_through_batches() -> None:
    """`trace.batches` numbers the items of any iterable, and finds a DataLoader's ids."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    items = [torch.ones(2, 1) * k for k in range(3)]
    loader = DataLoader(Numbers(6), batch_size=2)
    before = dict(vars(loader))
    with gradtrace(model, directory=None) as trace:
        for source in (items, loader):
            for item in trace.batches(source):
                x = item[0] if isinstance(item, list) else item
                model(x).sum().backward()
                optimizer.step()
    ids = [record.batches[0].sample_ids for record in trace.steps]
    assert ids == [None, None, None, (0, 1), (2, 3), (4, 5)]
    assert [record.batches[0].ordinal for record in trace.steps] == list(range(6))
    assert dict(vars(loader)) == before


def test_two_live_iterators_are_told_apart() -> None:
    """Two iterators over one loader at a time are two epochs, each with its own indices."""
    loader = DataLoader(Numbers(8), batch_size=2, shuffle=True)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    truth = []
    with gradtrace(model, loader=loader, directory=None) as trace:
        for k, ((a,), (b,)) in enumerate(zip(loader, loader, strict=True)):
            model(torch.cat([a, b])).sum().backward()
            optimizer.step()
            truth.append([(e, k, tuple(int(v) for v in x.flatten())) for e, x in ((0, a), (1, b))])
    found = [
        [(ref.epoch, ref.batch_index, ref.sample_ids) for ref in record.batches]
        for record in trace.steps
    ]
    assert found == truth


def test_a_loader_whose_workers_already_run_is_noted() -> None:
    """Persistent workers from before the trace cannot be followed; a note says what to do."""
    loader = DataLoader(Numbers(8), batch_size=2, num_workers=1, persistent_workers=True)
    next(iter(loader))
    model = nn.Linear(1, 1)
    with gradtrace(model, loader=loader, directory=None) as trace:
        pass
    assert [note.source for note in trace.notes] == ["loader"]


def test_a_torch_without_the_expected_iterator_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a private name is missing the tap is off, with a note and without an error."""
    monkeypatch.delattr(torch.utils.data.dataloader._BaseDataLoaderIter, "_next_index")
    loaders._recording_classes.cache_clear()
    loader = DataLoader(Numbers(4), batch_size=2)
    model = nn.Linear(1, 1)
    try:
        with gradtrace(model, loader=loader, directory=None) as trace:
            assert vars(loader).get("_get_iterator") is None
        assert "batches" in [note.source for note in trace.notes]
    finally:
        loaders._recording_classes.cache_clear()
