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
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

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
    """Any iterable's items, each reported as it is delivered."""
    stream = observer.begins(iterable)
    for data in iterable:
        observer.delivered(stream, None, data)
        yield data
    observer.ended(stream)


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
        streams = [(observer, observer.begins(loader)) for observer in wanting]
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
                observer.ended(stream)
            raise
        indices = _indices(self, state)
        for observer, stream in told:
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
