"""Batches as they are delivered: which iteration over which loader, in what order, of what ids."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

from gradtrace.collect.sample_ids import SampleIds
from gradtrace.handover.step import Batch


class Batches:
    """Numbers a trace's batches. Training thread; `count` is how many were delivered."""

    def __init__(
        self, sample_ids: Callable[[Any], Any] | None, note: Callable[[str, str], None]
    ) -> None:
        self._sample_ids = None if sample_ids is None else SampleIds(sample_ids, note)
        # By id: how many iterations there were, and what ends the entry together with the loader,
        # for another one may get its id. A list cannot be watched.
        self._epochs: dict[int, tuple[int, weakref.ref[Any] | None]] = {}
        self.count = 0

    def epoch(self, loader: Any) -> int:
        """The number of iterations over this loader before the one that begins."""
        key = id(loader)
        number, watch = self._epochs.get(key, (0, None))
        if watch is None:
            with contextlib.suppress(TypeError):
                watch = weakref.ref(loader, lambda _: self._epochs.pop(key, None))
        self._epochs[key] = (number + 1, watch)
        return number

    def delivered(self, epoch: int, batch_index: int, indices: Any, data: Any) -> Batch:
        """One more batch: `data` made of the dataset's `indices`, None where it has none."""
        ids: Any = None
        if self._sample_ids is not None:
            ids = self._sample_ids.of(data)
        elif isinstance(indices, (list, tuple)):
            ids = tuple(indices)
            if ids and ids[0] is None:
                ids = None  # an iterable dataset draws no indices
        elif indices is not None:
            ids = (indices,)
        batch = Batch(epoch, batch_index, self.count, ids)
        self.count += 1
        return batch
