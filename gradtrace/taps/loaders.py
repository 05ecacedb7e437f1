"""Which dataset indices each delivered batch is made of.

A `DataLoader` is given, for as long as it is watched, an iterator of a subclass that remembers the
indices drawn for each batch and tells which batch was delivered. With workers the sampler runs
several batches ahead, so what was drawn last is never the batch at hand. What the loader yields is
unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader
from torch.utils.data import dataloader as torch_dataloader

from gradtrace.taps.patches import Function, Method, Observers, registry


class LoaderObserver(Protocol):
    """Told of batches as they are delivered."""

    def epoch(self, loader: Any) -> int:
        """A new iteration over the loader begins; its 0-based number."""

    def delivered(self, epoch: int, batch_index: int, indices: Any, data: Any) -> None:
        """`indices` are the dataset indices of the batch, None for data without any."""


def attach(loader: DataLoader[Any], observer: LoaderObserver) -> Callable[[], None]:
    """Watches plain `for` loops over the loader that begin from now on; returns what ends that.

    Raises AttributeError when this torch's loader is built differently.
    """
    _recording_classes()
    if not callable(getattr(loader, "_get_iterator", None)):
        raise AttributeError(f"{type(loader).__name__} has no _get_iterator")
    detach = registry.attach(Method(loader, "_get_iterator", _wrap(loader)), observer)

    def end() -> None:
        detach()
        kept = getattr(loader, "_iterator", None)
        if "_get_iterator" not in vars(loader) and isinstance(kept, Recording):
            kept.__class__ = kept._plain_class  # persistent workers outlive the trace

    return end


def started_before(loader: DataLoader[Any]) -> bool:
    """Whether persistent workers already iterate, so that their batches cannot be told apart."""
    kept = getattr(loader, "_iterator", None)
    return kept is not None and not isinstance(kept, Recording)


def watched(iterable: Iterable[Any], observer: LoaderObserver) -> Iterator[Any]:
    """Any iterable's items, each reported as it is delivered."""
    epoch = observer.epoch(iterable)
    for index, data in enumerate(iterable):
        observer.delivered(epoch, index, None, data)
        yield data


class Recording:
    """The part of a recording iterator that is the same with and without workers."""

    _observers: Observers
    _plain_class: type[Any]

    def __init__(self, loader: DataLoader[Any], observers: Observers) -> None:
        self._observers = observers
        self._begin(loader)
        # With workers the base class fills their queues, and so draws indices, while it is made.
        super().__init__(loader)  # type: ignore[call-arg]

    def _begin(self, loader: DataLoader[Any]) -> None:
        # A loader keeps its persistent iterator. One that kept the loader would close a circle, and
        # workers that a garbage collection ends are waited for: 5 s each.
        self._drawn: dict[int, Any] = {}
        self._last_drawn: Any = None
        self._last_arrived: int | None = None
        self._epochs = [(observer, observer.epoch(loader)) for observer in self._observers()]
        self._delivered = 0

    def _deliver(self, indices: Any, data: Any) -> None:
        watching = self._observers()
        for observer, epoch in self._epochs:
            if observer in watching:
                observer.delivered(epoch, self._delivered, indices, data)
        self._delivered += 1


def _wrap(loader: DataLoader[Any]) -> Callable[[Function, Observers], Function]:
    def wrap(original: Function, observers: Observers) -> Function:
        def _get_iterator() -> Any:
            if not observers():
                return original()
            single, several = _recording_classes()
            if loader.num_workers == 0:
                return single(loader, observers)
            loader.check_worker_number_rationality()
            return several(loader, observers)

        return _get_iterator

    return wrap


class _Single(Recording):
    def _next_index(self) -> Any:
        self._last_drawn = index = super()._next_index()  # type: ignore[misc]
        return index

    def __next__(self) -> Any:
        data = super().__next__()  # type: ignore[misc]
        self._deliver(self._last_drawn, data)
        return data


class _Several(Recording):
    _send_idx: int
    _rcvd_idx: int

    def _reset(self, loader: DataLoader[Any], first_iter: bool = False) -> None:
        if not first_iter:
            self._begin(loader)
        super()._reset(loader, first_iter)  # type: ignore[misc]

    def _next_index(self) -> Any:
        index = super()._next_index()  # type: ignore[misc]
        self._drawn[self._send_idx] = index
        return index

    def _get_data(self) -> Any:
        arrived = super()._get_data()  # type: ignore[misc]
        self._last_arrived = arrived[0]
        return arrived

    def __next__(self) -> Any:
        data = super().__next__()  # type: ignore[misc]
        in_order = getattr(self, "_in_order", True)
        task = self._rcvd_idx - 1 if in_order else self._last_arrived
        self._deliver(None if task is None else self._drawn.pop(task, None), data)
        return data


@functools.cache
def _recording_classes() -> tuple[type[Any], type[Any]]:
    """The two recording iterator classes; AttributeError when their bases are not as expected."""
    single = torch_dataloader._SingleProcessDataLoaderIter
    several = torch_dataloader._MultiProcessingDataLoaderIter
    for base, names in (
        (single, ("_next_index",)),
        (several, ("_next_index", "_get_data", "_reset")),
    ):
        for name in names:
            if not hasattr(base, name):
                raise AttributeError(f"{base.__name__} has no {name}")
    return (
        type("RecordingSingleProcessIter", (_Single, single), {"_plain_class": single}),
        type("RecordingMultiProcessingIter", (_Several, several), {"_plain_class": several}),
    )
