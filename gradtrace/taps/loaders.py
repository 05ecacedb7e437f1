"""Which dataset indices each delivered batch is made of.

torch's own iterators are watched, on their class: whatever makes one (a DataLoader, a subclass that
wraps it, a copy) behaves as it always did, and nothing is put on anybody's object. An iterator
remembers the indices drawn for each batch and tells which batch was delivered; with workers the
sampler runs several batches ahead, so what was drawn last is never the batch at hand.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import dataloader as torch_dataloader

from gradtrace.taps.patches import Function, Observers, Target, attribute, registry


class LoaderObserver(Protocol):
    """Told of batches as they are delivered, in the thread that takes them."""

    def wants(self, loader: Any) -> bool:
        """Whether an iteration over this loader, which begins in the calling thread, is watched."""

    def begins(self, loader: Any) -> Any:
        """An iteration over the loader begins; the result names it in `delivered`."""

    def delivered(self, stream: Any, indices: Any, data: Any) -> None:
        """`indices` are the dataset indices of the batch, None for data without any."""

    def ended(self, stream: Any) -> None:
        """The iteration has come to its end."""


@dataclass(slots=True)
class _State:
    """What is known of one iterator."""

    streams: list[tuple[Any, Any]]
    """Observers, and the streams that they named."""
    thread: int
    drawn: dict[int, Any] = field(default_factory=dict)
    last_drawn: Any = None
    last_arrived: int | None = None
    inside: bool = False


_MOST_AHEAD = 64
"""Batches of a loader that an iterable made of it may hold back."""

_states: weakref.WeakKeyDictionary[Any, _State] = weakref.WeakKeyDictionary()
"""Per process by nature: iterators are torch's, and hold nothing of ours."""


def attach(observer: LoaderObserver) -> Callable[[], None]:
    """Watches all loaders; returns what ends that. Raises AttributeError where torch differs."""
    with ExitStack() as stack:
        for target in _targets():
            stack.callback(registry.attach(target, observer))
        return stack.pop_all().close
    raise AssertionError("unreachable")


def watched(iterable: Iterable[Any], observer: LoaderObserver) -> Iterator[Any]:
    """Any iterable's items, each reported as it is delivered.

    Where it is made of a DataLoader's batches they are delivered once, by this iterable; those that
    it passes on as they are keep their indices.
    """
    stream = observer.begins(iterable)
    inner = _Inner(observer)
    with inner:
        iterator = iter(iterable)
    while True:
        try:
            with inner:
                data = next(iterator)
        except StopIteration:
            break
        observer.delivered(stream, inner.indices(data), data)
        yield data
    observer.ended(stream)


class _Stack(threading.local):
    def __init__(self) -> None:
        self.inner: list[_Inner] = []


_stack = _Stack()
"""The watched iterables that are asked for an item in this thread, innermost last."""


class _Inner:
    """What loaders deliver while an iterable that is watched is asked for its next item."""

    def __init__(self, observer: LoaderObserver) -> None:
        self.observer = observer
        self._last: tuple[Any, Any] = (None, None)
        self._known: deque[tuple[weakref.ref[Tensor], Any]] = deque(maxlen=_MOST_AHEAD)

    def __enter__(self) -> None:
        self._last = (None, None)
        _stack.inner.append(self)

    def __exit__(self, *error: object) -> None:
        _stack.inner.pop()

    def add(self, data: Any, indices: Any) -> None:
        """A loader has delivered this batch."""
        self._last = (data, indices)
        tensor = _tensor(data)
        if tensor is not None:
            self._known.append((weakref.ref(tensor), indices))

    def indices(self, data: Any) -> Any:
        """Those of a batch that is passed on as a loader has delivered it; None for any other."""
        last, indices = self._last
        self._last = (None, None)
        if last is not None and last is data:
            return indices
        tensor = _tensor(data)
        if tensor is not None:
            for ref, indices in self._known:
                if ref() is tensor:
                    return indices
        return None


def _inner_of(observer: LoaderObserver) -> _Inner | None:
    return next((one for one in _stack.inner if one.observer is observer), None)


def _tensor(data: Any, depth: int = 3) -> Tensor | None:
    """The first tensor of a batch."""
    if isinstance(data, Tensor) or not depth:
        return data if isinstance(data, Tensor) else None
    parts = data.values() if isinstance(data, Mapping) else data
    for part in parts if isinstance(data, (Mapping, list, tuple)) else ():
        found = _tensor(part, depth - 1)
        if found is not None:
            return found
    return None


def _targets() -> list[Target]:
    base = torch_dataloader._BaseDataLoaderIter
    several = torch_dataloader._MultiProcessingDataLoaderIter
    return [
        attribute(base, "__init__", _wrap_init),
        attribute(base, "_reset", _wrap_reset),
        attribute(base, "_next_index", _wrap_next_index),
        attribute(base, "__next__", _wrap_next),
        attribute(several, "_get_data", _wrap_get_data),
    ]


def _begin(iterator: Any, loader: Any, observers: Observers) -> None:
    """A new iteration: an iterator is made, or one with persistent workers starts over."""
    wanting = [observer for observer in observers() if observer.wants(loader)]
    if wanting:
        streams = [
            (observer, None if _inner_of(observer) else observer.begins(loader))
            for observer in wanting
        ]
        _states[iterator] = _State(streams, threading.get_ident())
    else:
        _states.pop(iterator, None)


def _wrap_init(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, loader, *args, **kwargs)
        if observers():
            # With workers the subclass fills their queues, and so draws indices, after this.
            _begin(self, loader, observers)

    return __init__


def _wrap_reset(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def _reset(self: Any, loader: Any, first_iter: bool = False) -> None:
        if observers() and not first_iter:
            _begin(self, loader, observers)
        original(self, loader, first_iter)

    return _reset


def _wrap_next_index(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def _next_index(self: Any) -> Any:
        index = original(self)
        state = _states.get(self)
        if state is not None:
            state.last_drawn = index
            task = getattr(self, "_send_idx", None)
            if task is not None:
                state.drawn[task] = index
        return index

    return _next_index


def _wrap_get_data(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def _get_data(self: Any) -> Any:
        arrived = original(self)
        state = _states.get(self)
        if state is not None:
            state.last_arrived = arrived[0]
        return arrived

    return _get_data


def _wrap_next(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def __next__(self: Any) -> Any:  # noqa: N807
        state = _states.get(self)
        watching = observers()
        if state is None or not watching or state.thread != threading.get_ident():
            return original(self)
        told = [(observer, stream) for observer, stream in state.streams if observer in watching]
        try:
            data = original(self)
        except StopIteration:
            for observer, stream in told:
                if stream is not None:
                    observer.ended(stream)
            raise
        indices = _indices(self, state)
        for observer, stream in told:
            inner = _inner_of(observer) if _stack.inner else None
            if inner is not None:
                inner.add(data, indices)
            elif stream is not None:
                observer.delivered(stream, indices, data)
        return data

    return __next__


def _indices(iterator: Any, state: _State) -> Any:
    """What the batch that was just delivered is made of."""
    received = getattr(iterator, "_rcvd_idx", None)
    if received is None:
        return state.last_drawn
    in_order = getattr(iterator, "_in_order", True)
    task = received - 1 if in_order else state.last_arrived
    return None if task is None else state.drawn.pop(task, None)


def is_loader(value: object) -> bool:
    """Whether a value is a DataLoader, whose own iterations are watched."""
    return isinstance(value, DataLoader)
