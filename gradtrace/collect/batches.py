"""Batches as they are delivered, held until a backward takes them.

What a loader delivers waits in its stream. A backward that reaches the traced parameters takes from
each stream what it was computed from; what is delivered while gradients are switched off belongs to
no training. How many batches a backward takes, and how far ahead a loop fetches, shows in the
rhythm of deliveries: where it does not, a step has no batches, and a note says why.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gradtrace.collect.sample_ids import SampleIds
from gradtrace.handover.step import Batch

Note = Callable[[str, str], None]

MOST_HELD = 64
"""Batches of a stream that wait; a loop that fetches more ahead takes by hand."""
STEADY = 5
"""Takes of one batch each after which a second one is an exception."""


@dataclass(slots=True)
class Rhythm:
    """How a loop takes the batches of a loader: `each` a backward, fetched `ahead` of it.

    None until that has been seen. It is the same for all iterations over a loader.
    """

    each: int | None = None
    ahead: int = 0
    unclear: int = 0
    """How many batches waited at the first backward, where that was more than one."""
    takes: int = 0
    lost: bool = False
    """It does not show in this iteration; the next one may begin plainly."""
    by_hand: bool = False


@dataclass(slots=True)
class _Held:
    batch: Batch
    tensors: list[weakref.ref[Tensor]]

    @property
    def alive(self) -> bool:
        """Whether the loop, or a graph, still holds the batch."""
        return any(ref() is not None for ref in self.tensors)


@dataclass(slots=True, eq=False)
class Stream:
    """One iteration over a loader."""

    epoch: int
    rhythm: Rhythm
    held: deque[_Held] = field(default_factory=deque)
    count: int = 0
    fresh: int = 0
    """Delivered since the last backward."""
    taken: int = 0
    ended: bool = False
    name: str = ""
    """Of a loader that was not asked for."""

    def take(self, note: Note) -> list[Batch]:
        """What the backward that has just ended was computed from."""
        rhythm, waiting, fresh = self.rhythm, len(self.held), self.fresh
        # Of several fetched ahead, nothing tells after the end when the next one's turn is.
        self.fresh = int(self.ended and rhythm.ahead > 1 and waiting > 1)
        if rhythm.by_hand or rhythm.lost or not waiting:
            return []
        if not fresh:
            return []  # one more backward of what an earlier one has taken
        if rhythm.each is None:
            return self._find_rhythm(waiting, fresh, note)
        # At the end of an iteration nothing is fetched ahead any more.
        ending = self.ended and rhythm.ahead > 0
        expected = max(rhythm.each, rhythm.ahead) if ending else rhythm.each + rhythm.ahead
        if waiting <= expected:
            return self._first(rhythm.each if rhythm.ahead else waiting)
        steady = rhythm.takes >= STEADY and rhythm.each == 1 and not rhythm.ahead
        if steady and [one.alive for one in self.held] == [False] * (waiting - 1) + [True]:
            # The others were let go before: batches that the loop has passed over.
            last = self.held[-1]
            self.held.clear()
            self.held.append(last)
            return self._first(1)
        self._give_up(note, waiting, expected)
        return []

    def passed(self) -> list[Batch]:
        """What the loop has got since the last take, without what it has only fetched ahead."""
        ahead = self.rhythm.ahead
        waiting = len(self.held)
        count = min(1, waiting) if ahead and self.ended else max(0, waiting - ahead)
        self.fresh = 0
        return [self.held.popleft().batch for _ in range(count)]

    def _find_rhythm(self, waiting: int, fresh: int, note: Note) -> list[Batch]:
        rhythm = self.rhythm
        if not rhythm.unclear:
            if waiting == 1:
                rhythm.each = 1
                return self._first(1)
            rhythm.unclear = waiting
            note(
                "batches",
                f"{waiting} batches were delivered before the first backward: whether it used all "
                "of them, or the loop fetches ahead, shows at the next one; this step has none "
                "(trace.take(loader) says which)",
            )
            return []
        before = list(self.held)[:-fresh] if fresh else []
        if fresh == rhythm.unclear and not any(one.alive for one in before):
            rhythm.each = fresh
            while len(self.held) > fresh:
                self.held.popleft()
            return self._first(fresh)
        # What was fetched ahead is kept until its turn; what was passed over is not.
        if fresh == 1 and all(one.alive for one in list(self.held)[-rhythm.unclear :]):
            rhythm.each, rhythm.ahead = 1, rhythm.unclear - 1
            self.held.popleft()  # the first backward's
            return self._first(1)
        rhythm.lost = True
        self.held.clear()
        note(
            "batches",
            f"{rhythm.unclear} batches were delivered before the first backward and {fresh} before "
            "the second: which of them they used cannot be told, so the steps of this iteration "
            "have none; trace.take(loader) says which",
        )
        return []

    def _first(self, count: int) -> list[Batch]:
        self.rhythm.takes += 1
        self.taken += 1
        return [self.held.popleft().batch for _ in range(min(count, len(self.held)))]

    def _give_up(self, note: Note, waiting: int, expected: int) -> None:
        while len(self.held) > self.rhythm.ahead:
            self.held.popleft()
        note(
            "batches",
            f"{waiting} batches were waiting at a backward where {expected} are usual: which of "
            "them it used cannot be told, so some steps have none; trace.take(loader) says which",
        )


@dataclass(slots=True)
class _Loader:
    """A loader that was iterated: weakly held, its rhythm, and how many iterations it had."""

    ref: Callable[[], Any]
    rhythm: Rhythm = field(default_factory=Rhythm)
    epochs: int = 0


class Batches:
    """The streams of a trace, and the numbers of its batches. Training thread.

    `loaders` are those whose batches are held, None for all that are iterated in this thread.
    `count` is how many batches were delivered.
    """

    def __init__(
        self,
        sample_ids: Callable[[Any], Any] | None,
        note: Note,
        *,
        loaders: Iterable[Any] | None = None,
    ) -> None:
        self._sample_ids = None if sample_ids is None else SampleIds(sample_ids, note)
        self._note = note
        self._wanted = None if loaders is None else [_weak(one) for one in loaders]
        self._datasets = (
            [] if loaders is None else [_weak(getattr(one, "dataset", one)) for one in loaders]
        )
        self._known: list[_Loader] = []
        self._asked: list[Callable[[], Any]] = []
        self._streams: list[Stream] = []
        self._by_hand: list[Batch] = []
        self._idle: deque[Batch] = deque(maxlen=MOST_HELD)
        self.count = 0
        self.with_gradients = 0
        """How many of them were delivered while gradients were enabled."""

    def wants(self, loader: Any) -> bool:
        """Whether this loader's batches are held: it was given, or one of the same dataset."""
        if self._wanted is None:
            return True
        dataset = getattr(loader, "dataset", loader)
        return any(ref() is loader for ref in self._wanted) or any(
            ref() is dataset for ref in self._datasets
        )

    def want(self, loader: Any) -> None:
        """Holds this loader's batches too."""
        if self._wanted is not None:
            self._wanted.append(_weak(loader))
        self._asked.append(_weak(loader))

    def begin(self, loader: Any) -> Stream:
        """A new iteration over a loader, or anything else that is iterated."""
        known = next((one for one in self._known if one.ref() is loader), None)
        if known is None:
            self._known = [one for one in self._known if one.ref() is not None]
            known = _Loader(_weak(loader))
            self._known.append(known)
        asked = any(ref() is loader for ref in self._asked)
        before = known.rhythm
        if before.lost:
            known.rhythm = Rhythm()
        stream = Stream(known.epochs, known.rhythm, name="" if asked else _name(loader))
        known.epochs += 1
        # What an iteration that was broken off, or never led to a backward, has left was no
        # training.
        self._streams = [
            one
            for one in self._streams
            if one.held and one.rhythm is not before and not (one.ended and not one.taken)
        ]
        self._streams.append(stream)
        return stream

    def delivered(self, stream: Stream, indices: Any, data: Any) -> None:
        """One more batch: `data` made of the dataset's `indices`, None where it has none."""
        index = stream.count
        stream.count += 1
        ids = self._sample_ids.of(data) if self._sample_ids is not None else _ids(indices)
        batch = Batch(stream.epoch, index, self.count, ids)
        self.count += 1
        if not torch.is_grad_enabled():
            self._idle.append(batch)  # an evaluation, or a step without gradients
            return
        self.with_gradients += 1
        if stream.rhythm.lost:
            return
        if len(stream.held) == MOST_HELD:
            stream.held.popleft()
        stream.held.append(_Held(batch, [weakref.ref(t) for t in _some_tensors(data)]))
        stream.fresh += 1
        if stream not in self._streams:
            self._streams.append(stream)

    def ended(self, stream: Stream) -> None:
        """The iteration is over; what a loop has fetched ahead may still be taken."""
        stream.ended = True
        # The loop asked for one more, and goes on with what it had fetched before.
        stream.fresh += bool(stream.held and stream.rhythm.ahead)

    @property
    def waiting(self) -> bool:
        """Whether anything was delivered since the last take."""
        return bool(self._by_hand or self._idle) or any(s.fresh for s in self._streams)

    def take(self, *, everything: bool = False) -> tuple[Batch, ...]:
        """A backward has reached the traced parameters: the batches that led to it.

        `everything` is for a step without a backward: all that was delivered since the last take,
        also while gradients were switched off.
        """
        taken, self._by_hand = self._by_hand, []
        idle, self._idle = self._idle, deque(maxlen=MOST_HELD)
        if everything:
            taken += idle
            for stream in self._streams:
                taken += stream.passed()
            return tuple(sorted(taken, key=lambda batch: batch.ordinal))
        for stream in self._streams:
            some = stream.take(self._note)
            if some and self._wanted is None and stream.rhythm.takes == 1 and stream.name:
                self._note(
                    "loader",
                    f"the batches of steps are those of {stream.name}, which was iterated in the "
                    "training thread; gradtrace(..., loader=...) chooses others",
                )
            taken += some
        return tuple(sorted(taken, key=lambda batch: batch.ordinal))

    def clear(self) -> None:
        """Lets go of everything that is held."""
        self._streams, self._by_hand, self._known = [], [], []
        self._datasets, self._asked, self._wanted = [], [], []
        self._idle.clear()

    def take_by_hand(
        self, loader: Any, epoch: int | None = None, batch_index: int | None = None
    ) -> bool:
        """The next held batch of a loader goes to the next backward; False where none is held."""
        dataset = getattr(loader, "dataset", loader)
        rhythms = []
        for known in self._known:
            if known.ref() is loader or getattr(known.ref(), "dataset", None) is dataset:
                known.rhythm.by_hand = True
                rhythms.append(known.rhythm)
        for stream in self._streams:
            if stream.held and any(stream.rhythm is rhythm for rhythm in rhythms):
                batch = stream.held.popleft().batch
                stream.taken += 1
                batch.epoch = batch.epoch if epoch is None else epoch
                batch.batch_index = batch.batch_index if batch_index is None else batch_index
                self._by_hand.append(batch)
                return True
        return False


def _name(loader: Any) -> str:
    """A DataLoader in words; "" for what a loop has asked for itself."""
    if not isinstance(loader, DataLoader):
        return ""
    return f"{type(loader).__name__}({type(loader.dataset).__name__})"


def _weak(value: Any) -> Callable[[], Any]:
    """A weak reference; a strong one to what allows none, such as a list."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def _ids(indices: Any) -> Any:
    """The indices of a batch, kept from later changes; None where a dataset draws none."""
    if isinstance(indices, Tensor):
        return indices.detach().clone()
    if isinstance(indices, np.ndarray):
        return indices.copy()
    if isinstance(indices, (list, tuple, range)):
        return None if len(indices) and indices[0] is None else tuple(indices)
    return None if indices is None else (indices,)


def _some_tensors(data: Any, depth: int = 3) -> Iterator[Tensor]:
    """The first tensors of a batch."""
    if isinstance(data, Tensor):
        yield data
    elif depth and isinstance(data, Mapping):
        for part in list(data.values())[:4]:
            yield from _some_tensors(part, depth - 1)
    elif depth and isinstance(data, (list, tuple)):
        for part in data[:4]:
            yield from _some_tensors(part, depth - 1)
