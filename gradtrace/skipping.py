"""Leaving out the samples and batches that a run's spikes were traced to.

    loader = DataLoader(data, batch_size=16, sampler=SkipSamples(RandomSampler(data), "bad.json"))

The wrapped sampler is asked for all it has, in its own order and with its own random state; what is
bad is dropped afterwards. So an epoch is the one it would have been, less the bad samples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradtrace.records import SampleId

Bad = str | os.PathLike[str] | Mapping[str, Any] | Iterable[SampleId]


def read_bad(bad: Bad) -> tuple[frozenset[SampleId], frozenset[tuple[int, int]]]:
    """The bad samples' ids and the bad batches as (epoch, batch index).

    `bad` is a file that `gradtrace bad-batches` wrote, what it holds, or ids. Raises TypeError or
    ValueError that says what was expected.
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
            samples = frozenset(entry["id"] for entry in bad["samples"])
            batches = frozenset((e["epoch"], e["batch_index"]) for e in bad["batches"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the list of bad batches lacks {error}; expected what `gradtrace bad-batches RUN` "
                "writes"
            ) from error
        return samples, batches
    return frozenset(bad), frozenset()


class _Wrapper:
    """Passes on everything it does not know, so that `set_epoch`, `state_dict` and such work."""

    def __init__(self, wrapped: Any) -> None:
        if not hasattr(wrapped, "__iter__"):
            raise TypeError(
                f"got a {type(wrapped).__name__}; expected a sampler, something to iterate over"
            )
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_wrapped":
            raise AttributeError(name)
        return getattr(self._wrapped, name)


class SkipSamples(_Wrapper):
    """A sampler's indices without the bad ones. `bad` as for `read_bad`.

    `len` is exact once an epoch has been drawn to its end; before that it is at most the number of
    bad samples too high. `epochs` counts the iterations begun. Raises TypeError or ValueError for
    arguments of the wrong kind.
    """

    def __init__(self, sampler: Iterable[int], bad: Bad) -> None:
        super().__init__(sampler)
        self.bad, _ = read_bad(bad)
        self._dropped = 0

    def __iter__(self) -> Iterator[int]:
        dropped = 0
        for index in self._wrapped:
            if index in self.bad:
                dropped += 1
            else:
                yield index
        self._dropped = dropped

    def __len__(self) -> int:
        return len(self._wrapped) - self._dropped


class SkipBatches(_Wrapper):
    """A batch sampler's batches without those that are bad.

    A batch is left out when it is listed by epoch and batch index, or when it holds a bad sample.
    Epochs are counted from `first_epoch`, one an iteration, as the trace that wrote the list
    counted them: give a resumed run the epoch it starts with. `first_batch` is the index of the
    first batch that the sampler gives in its first iteration, for one that resumes within an epoch.
    """

    def __init__(
        self,
        batch_sampler: Iterable[Sequence[int]],
        bad: Bad,
        *,
        first_epoch: int = 0,
        first_batch: int = 0,
    ) -> None:
        super().__init__(batch_sampler)
        self.bad, self.bad_batches = read_bad(bad)
        self._epoch = first_epoch
        self._first_batch = first_batch
        self._dropped = 0

    def __iter__(self) -> Iterator[Sequence[int]]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        first, self._first_batch = self._first_batch, 0
        dropped = 0
        for index, batch in enumerate(self._wrapped, first):
            if (epoch, index) in self.bad_batches or not self.bad.isdisjoint(batch):
                dropped += 1
            else:
                yield batch
        self._dropped = dropped

    def __len__(self) -> int:
        return len(self._wrapped) - self._dropped
