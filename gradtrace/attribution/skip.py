"""Leaving out the samples and batches that a run's spikes were traced to.

    loader = DataLoader(data, batch_size=16, sampler=SkipSamples(RandomSampler(data), "bad.json"))

The wrapped sampler is asked for all it has, in its own order and with its own random state; what is
bad is dropped afterwards. So an epoch is the one it would have been, less the bad samples.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gradtrace.records import SampleId

logger = logging.getLogger("gradtrace")


class Listed(Protocol):
    """What has lists of bad samples and batches: `gradtrace.BadList`."""

    @property
    def samples(self) -> Iterable[Any]:
        """Each with an `id`."""

    @property
    def batches(self) -> Iterable[Any]:
        """Each with an `epoch` and a `batch_index`."""


Bad = str | os.PathLike[str] | Mapping[str, Any] | Listed | Iterable[Any]

_EXPECTED = (
    "expected a file that `gradtrace bad-batches RUN` wrote, what it holds, what find_bad(run) "
    "returned, or a list of sample ids (int or str)"
)
_PLAIN_SAMPLERS = {
    "DistributedSampler",
    "RandomSampler",
    "SequentialSampler",
    "SubsetRandomSampler",
    "WeightedRandomSampler",
}


def read_bad(bad: Bad) -> tuple[frozenset[SampleId], frozenset[tuple[int, int]]]:
    """The bad samples' ids and the bad batches as (epoch, batch index).

    `bad` is a file that `gradtrace bad-batches` wrote, what it holds, what `find_bad` returned, or
    a list: ids are samples, pairs of ints are batches, and so are the entries of those lists. A
    tensor or array counts as the list it holds. Raises TypeError or ValueError that says what was
    expected.
    """
    if isinstance(bad, (str, os.PathLike)):
        try:
            bad = json.loads(Path(bad).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{str(bad)!r} cannot be read as a list of bad batches ({error}); expected a "
                "file that `gradtrace bad-batches RUN` wrote"
            ) from error
        if not isinstance(bad, Mapping):
            raise ValueError(
                f"the file holds a {type(bad).__name__}; expected what `gradtrace bad-batches RUN` "
                "writes, an object with 'samples' and 'batches'"
            )
    if isinstance(bad, Mapping):
        try:
            parts = [*bad["samples"], *bad["batches"]]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the list of bad batches lacks {error}; expected what `gradtrace bad-batches RUN` "
                "writes"
            ) from error
    elif hasattr(bad, "samples") and hasattr(bad, "batches"):
        parts = [*bad.samples, *bad.batches]
    else:
        plain = _plain(bad)
        strange = _torch_kinds(bad) or hasattr(bad, "read")  # a sampler, an open file
        if strange or isinstance(plain, (bytes, bytearray)) or not isinstance(plain, Iterable):
            raise TypeError(f"the bad samples are given as a {type(bad).__name__}; {_EXPECTED}")
        parts = list(plain)
    samples: set[SampleId] = set()
    batches: set[tuple[int, int]] = set()
    for part in map(_entry, parts):
        if isinstance(part, tuple):
            batches.add(part)
        else:
            samples.add(part)
    return frozenset(samples), frozenset(batches)


def _entry(part: Any) -> SampleId | tuple[int, int]:
    """An id, or the epoch and the index of a batch."""
    found = _plain(part)
    if isinstance(found, Mapping):
        names = ("id",) if "id" in found else ("epoch", "batch_index")
        values = [_plain(found.get(name)) for name in names]
        found = values[0] if len(values) == 1 else tuple(values)
    elif hasattr(found, "epoch") and hasattr(found, "batch_index"):
        found = (_plain(found.epoch), _plain(found.batch_index))
    elif hasattr(found, "id"):
        found = _plain(found.id)
    if isinstance(found, (tuple, list)) and len(found) == 2 and all(map(_is_int, found)):
        return found[0], found[1]
    if _is_int(found) or isinstance(found, str):
        id_: SampleId = found
        return id_
    advice = ": give a mask's indices, mask.nonzero()" if isinstance(found, bool) else ""
    raise TypeError(f"the bad samples hold {part!r}, a {type(part).__name__}; {_EXPECTED}{advice}")


def _plain(value: Any) -> Any:
    """What a tensor, an array or one of their values is in plain Python."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _torch_kinds(value: Any) -> set[str]:
    """The names of the classes of torch.utils.data that a value belongs to."""
    return {c.__name__ for c in type(value).__mro__ if c.__module__.startswith("torch.utils.data")}


class _Wrapper:
    """Passes on everything it does not know, so that `set_epoch`, `state_dict` and such work."""

    def __init__(self, wrapped: Any, expected: str) -> None:
        if "DataLoader" in _torch_kinds(wrapped):
            raise TypeError(
                f"got a {type(wrapped).__name__}; expected {expected}: make the DataLoader with it"
            )
        if isinstance(wrapped, (str, bytes)) or not hasattr(wrapped, "__iter__"):
            raise TypeError(
                f"got a {type(wrapped).__name__}; expected {expected}, something to iterate over"
            )
        self._wrapped = wrapped
        self._told = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_wrapped":
            raise AttributeError(name)
        return getattr(self._wrapped, name)

    def _tell_strangers(self, bad: frozenset[SampleId], occurred: Any) -> None:
        """Warns once that a whole epoch had none of the bad samples, as with '7' for 7."""
        if bad and not self._told:
            self._told = True
            logger.warning(
                "%s left nothing out: none of the %d bad ids, such as %r, occurred in a whole "
                "epoch, whose ids are such as %r; expected the ids that the sampler gives (a "
                "number is not the text of it): correct the list, or ignore this where the "
                "sampler gives only a part of the data",
                type(self).__name__,
                len(bad),
                min(bad, key=str),
                occurred,
            )


class SkipSamples(_Wrapper):
    """A sampler's indices without the bad ones. `bad` as for `read_bad`; its batches don't count.

    `len` is exact once an epoch has been drawn to its end; before that it is at most the number of
    bad samples too high. `epochs` counts the iterations begun. A whole epoch in which none of the
    bad ids occurred is logged as a warning, once. Raises TypeError or ValueError for arguments of
    the wrong kind.
    """

    def __init__(self, sampler: Iterable[int], bad: Bad) -> None:
        super().__init__(sampler, "a sampler of indices, such as RandomSampler(data)")
        if isinstance(sampler, SkipBatches) or "BatchSampler" in _torch_kinds(sampler):
            raise TypeError(
                f"got a {type(sampler).__name__}; expected a sampler of indices: wrap a batch "
                "sampler in SkipBatches"
            )
        if isinstance(sampler, (list, tuple)) and sampler:
            _key(sampler[0], self)
        self.bad, batches = read_bad(bad)
        if batches and not self.bad:
            raise ValueError(
                f"the bad list holds no samples and {len(batches)} batches, such as "
                f"{min(batches)} (epoch, batch index); expected samples: batches are left out by "
                "SkipBatches(batch_sampler, bad)"
            )
        self._dropped = 0

    def __iter__(self) -> Iterator[int]:
        dropped = 0
        index: Any = None
        for index in self._wrapped:
            key = index if type(index) is int else _key(index, self)
            if key in self.bad:
                dropped += 1
            else:
                yield index
        self._dropped = dropped
        if index is not None and not dropped:
            self._tell_strangers(self.bad, _plain(index))

    def __len__(self) -> int:
        return len(self._wrapped) - self._dropped


class SkipBatches(_Wrapper):
    """A batch sampler's batches without those that are bad.

    A batch is left out when it is listed by epoch and batch index, or when it holds a bad sample.
    Epochs are counted from `first_epoch`, one an iteration, as the trace that wrote the list
    counted them: give a resumed run the epoch it starts with. `first_batch` is the index of the
    first batch that the sampler gives in its first iteration, for one that resumes within an epoch.
    `bad` as for `read_bad`; a whole epoch in which none of the bad ids occurred is logged as a
    warning, once. Raises TypeError or ValueError for arguments of the wrong kind.
    """

    def __init__(
        self,
        batch_sampler: Iterable[Sequence[int]],
        bad: Bad,
        *,
        first_epoch: int = 0,
        first_batch: int = 0,
    ) -> None:
        super().__init__(
            batch_sampler, "a batch sampler, such as BatchSampler(sampler, batch_size, drop_last)"
        )
        if isinstance(batch_sampler, SkipSamples) or type(batch_sampler).__name__ in (
            _PLAIN_SAMPLERS & _torch_kinds(batch_sampler)
        ):
            raise TypeError(
                f"got a {type(batch_sampler).__name__}; expected a batch sampler: write "
                "BatchSampler(sampler, batch_size, drop_last), or use SkipSamples"
            )
        if isinstance(batch_sampler, (list, tuple, range)) and batch_sampler:
            _keys(batch_sampler[0], self)
        self.bad, self.bad_batches = read_bad(bad)
        self._epoch = first_epoch
        self._first_batch = first_batch
        self._dropped = 0

    def __iter__(self) -> Iterator[Sequence[int]]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        first, self._first_batch = self._first_batch, 0
        dropped = 0
        occurred = first > 0  # what is left of an epoch says nothing of the whole
        example: Any = None
        for index, batch in enumerate(self._wrapped, first):
            keys = _keys(batch, self)
            holds = not self.bad.isdisjoint(keys)
            occurred = occurred or holds
            example = keys[0] if example is None and keys else example
            if (epoch, index) in self.bad_batches or holds:
                dropped += 1
            else:
                yield batch
        self._dropped = dropped
        if example is not None and not occurred:
            self._tell_strangers(self.bad, example)

    def __len__(self) -> int:
        return len(self._wrapped) - self._dropped


def _key(index: Any, wrapper: _Wrapper) -> Any:
    """An index as the bad list has it: a tensor's value, not the tensor."""
    key = _plain(index)
    if isinstance(key, list):
        raise TypeError(
            f"the sampler in {type(wrapper).__name__} gave the batch {key!r:.60}; expected an "
            "index: wrap a batch sampler in SkipBatches"
        )
    return key


def _keys(batch: Any, wrapper: _Wrapper) -> list[Any]:
    """A batch's indices as the bad list has them."""
    plain = _plain(batch)
    if isinstance(plain, str) or not isinstance(plain, Iterable):
        raise TypeError(
            f"the batch sampler in {type(wrapper).__name__} gave {plain!r}; expected a batch, a "
            "list of indices: write BatchSampler(sampler, batch_size, drop_last), or use "
            "SkipSamples"
        )
    return [index if type(index) is int else _plain(index) for index in plain]
