"""Each step knows the samples of the batch it consumed."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
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


class PassingOn:
    """As progress bars do: the loader's own batches."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


class Changing(PassingOn):
    def __iter__(self) -> Iterator[Any]:
        for [x] in self.loader:
            yield [x + 0]


class Ahead(PassingOn):
    def __iter__(self) -> Iterator[Any]:
        waiting = []
        for batch in self.loader:
            waiting.append(batch)
            if len(waiting) == 3:
                yield waiting.pop(0)
        yield from waiting


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [PassingOn, Changing, Ahead])
def test_what_is_made_of_a_loader_delivers_once(
    kind: type[PassingOn], workers: int, given: bool
) -> None:
    """The watched iterable's batches are the steps': with indices where they are passed on."""
    loader = DataLoader(Numbers(20), batch_size=4, shuffle=True, num_workers=workers)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    truth, source = [], kind(loader)
    with gradtrace(model, loader=loader if given else None, directory=None) as trace:
        for epoch in range(2):
            for k, [x] in enumerate(trace.batches(source)):
                model(x).sum().backward()
                optimizer.step()
                ids = tuple(int(v) for v in x.flatten().tolist())
                truth.append((epoch, k, None if kind is Changing else ids))
    found = [[(b.epoch, b.batch_index, b.sample_ids) for b in r.batches] for r in trace.steps]
    assert found == [[one] for one in truth]
    assert [batch.ordinal for r in trace.steps for batch in r.batches] == list(range(10))


def test_a_loader_beside_a_watched_iterable_is_its_own() -> None:
    """Only what is delivered within is the iterable's: two sources, two batches a step."""
    loader = DataLoader(Numbers(12), batch_size=4)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    with gradtrace(model, directory=None) as trace:
        for [x], y in zip(loader, trace.batches([1.0, 2.0, 3.0]), strict=True):
            (model(x) * y).sum().backward()
            optimizer.step()
    ids = [[b.sample_ids for b in r.batches] for r in trace.steps]
    assert ids == [[(0, 1, 2, 3), None], [(4, 5, 6, 7), None], [(8, 9, 10, 11), None]]


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


class Heard:
    """An observer that writes down what it is told; it wants all loaders."""

    def __init__(self, *, wanting: bool = True) -> None:
        self.wanting = wanting
        self.calls: list[tuple[Any, ...]] = []

    def wants(self, loader: Any) -> bool:
        return self.wanting

    def begins(self, loader: Any) -> int:
        self.calls.append(("begins",))
        return sum(call == ("begins",) for call in self.calls)

    def delivered(self, stream: Any, indices: Any, data: Any) -> None:
        self.calls.append((stream, indices, [int(x) for x in data[0].flatten()]))

    def ended(self, stream: Any) -> None:
        self.calls.append((stream, "ended"))


@pytest.fixture
def heard() -> Iterator[Heard]:
    observer = Heard()
    end = loaders.attach(observer)
    yield observer
    end()


def test_an_iteration_is_told_from_its_begin_to_its_end(heard: Heard) -> None:
    """Each with a name of its own, every batch with its indices and its data, and the end."""
    loader = DataLoader(Numbers(3), batch_size=2)
    for _ in range(2):
        list(loader)
    whole = [([0, 1], [0, 1]), ([2], [2])]
    assert heard.calls == [
        call
        for stream in (1, 2)
        for call in (("begins",), *((stream, *one) for one in whole), (stream, "ended"))
    ]


def test_an_observer_that_does_not_want_a_loader_hears_nothing() -> None:
    """The iteration belongs to those who wanted it when it began."""
    first, second = Heard(wanting=False), Heard()
    ends = [loaders.attach(first), loaders.attach(second)]
    list(DataLoader(Numbers(2)))
    for end in ends:
        end()
    assert first.calls == [] and len(second.calls) == 4


def test_who_is_gone_hears_nothing_more() -> None:
    """Also in the middle of an iteration, which goes on."""
    observer = Heard()
    end = loaders.attach(observer)
    iterator = iter(DataLoader(Numbers(4)))
    next(iterator)
    end()
    assert len(list(iterator)) == 3 and len(observer.calls) == 2


def test_another_thread_that_goes_on_with_an_iteration_is_not_heard(heard: Heard) -> None:
    """When a loop gets what that thread has drawn is not known here."""
    iterator = iter(DataLoader(Numbers(4)))
    next(iterator)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(iterator))
    thread.start()
    thread.join()
    assert len(found) == 3 and len(heard.calls) == 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("copied", [copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_a_loader_of_its_own(copied: Any, workers: int, heard: Heard) -> None:
    """Made inside a trace, by copying or pickling, it delivers its own data, with its ids."""
    loader = DataLoader(Numbers(4), batch_size=2, num_workers=workers)
    twin = copied(loader)
    twin.dataset.tensors  # noqa: B018
    list(loader)
    list(twin)
    assert heard.calls[1:3] == [(1, [0, 1], [0, 1]), (1, [2, 3], [2, 3])]
    assert heard.calls[5:7] == [(2, [0, 1], [0, 1]), (2, [2, 3], [2, 3])]


class Doubled(DataLoader[Any]):
    """Its batches are not those of torch's iterator."""

    def _get_iterator(self) -> Any:
        self.made = getattr(self, "made", 0) + 1
        return Doubling(super()._get_iterator())


class Doubling:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return [2 * part for part in next(self._inner)]


def test_a_loader_with_an_iterator_of_its_own_behaves_as_ever(heard: Heard) -> None:
    """Its method is called, the loop gets what it makes, and the ids are those it drew."""
    loader = Doubled(Numbers(4), batch_size=2)
    assert [x.flatten().tolist() for (x,) in loader] == [[0.0, 2.0], [4.0, 6.0]]
    assert loader.made == 1
    assert [call[1] for call in heard.calls[1:3]] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_is_put_on_anybodys_object(workers: int, heard: Heard) -> None:
    """Loader, dataset, sampler and iterator have the attributes that they have without a trace."""
    heard.wanting = False
    bare = DataLoader(Numbers(4), num_workers=workers, persistent_workers=bool(workers))
    bare_iterator = iter(bare)
    heard.wanting = True
    loader = DataLoader(Numbers(4), num_workers=workers, persistent_workers=bool(workers))
    iterator = iter(loader)
    next(bare_iterator)
    next(iterator)
    for ours, theirs in (
        (loader, bare),
        (loader.dataset, bare.dataset),
        (loader.sampler, bare.sampler),
        (iterator, bare_iterator),
    ):
        assert vars(ours).keys() == vars(theirs).keys()
    assert len(heard.calls) == 2


def test_an_iterator_that_is_gone_is_forgotten(heard: Heard) -> None:
    """What is known of it goes with it."""
    before = len(loaders._states)
    iterator = iter(DataLoader(Numbers(4)))
    assert len(loaders._states) == before + 1
    del iterator
    assert len(loaders._states) == before


def test_errors_of_the_dataset_come_out(heard: Heard) -> None:
    """As they are, and the failed batch counts as none."""
    data: Any = [torch.zeros(1), "not a tensor"]

    def refuse(samples: list[Any]) -> Any:
        if isinstance(samples[0], str):
            raise KeyError("mine")
        return samples

    iterator = iter(DataLoader(data, collate_fn=refuse))
    next(iterator)
    with pytest.raises(KeyError, match="mine"):
        next(iterator)
    assert [call[1:] for call in heard.calls[1:]] == [([0], [0])]


def test_workers_that_already_ran_are_followed_from_their_next_epoch() -> None:
    """Persistent workers from before the trace begin anew with each iteration."""
    loader = DataLoader(Numbers(8), batch_size=2, num_workers=1, persistent_workers=True)
    list(loader)
    check(*consume(loader))


def test_a_torch_without_the_expected_iterator_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a private name is missing the tap is off, with a note and without an error."""
    base = torch.utils.data.dataloader._BaseDataLoaderIter
    before = dict(vars(base))
    monkeypatch.delattr(base, "_reset")
    with gradtrace(nn.Linear(1, 1), directory=None) as trace:
        pass
    monkeypatch.undo()
    assert "batches" in [note.source for note in trace.notes]
    assert dict(vars(base)) == before
