"""Loaders, samplers and datasets as other libraries and people write them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter


class Mapped(DataLoader[Any]):
    """Changes what the base's iterator yields, as the loaders of PyTorch Geometric do."""

    def _get_iterator(self) -> Any:
        return map(self.change, super()._get_iterator())

    @staticmethod
    def change(batch: Any) -> Any:
        """Inputs twice as large."""
        index, x, y = batch
        return index, 2 * x, y


class Resumable(DataLoader[Any]):
    """Knows where it is and starts from there, as torchdata's StatefulDataLoader does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.position = self.start = 0

    def _get_iterator(self) -> Any:
        return ResumableIterator(self)

    def __iter__(self) -> Any:
        iterator = self._get_iterator()
        for _ in range(self.start):
            next(iterator)
        self.start = 0
        return iterator


class ResumableIterator(_SingleProcessDataLoaderIter):
    """Counts, in an iterator of its own."""

    def __init__(self, loader: Resumable) -> None:
        super().__init__(loader)
        self.owner, self.count = loader, 0

    def __next__(self) -> Any:
        data = super().__next__()
        self.count += 1
        self.owner.position = self.count
        return data


class Overridden(DataLoader[Any]):
    """Yields from `__iter__` what it makes of the base's batches, in halves."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            yield tuple(part[:2] for part in batch)


class Stream(IterableDataset[Any]):
    """Samples without indices."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.n)
        for k in range(self.n):
            x = torch.randn(6, generator=generator)
            yield torch.tensor(k), x, torch.randn(1, generator=generator)


class Named(Dataset[Any]):
    """Samples under names."""

    def __init__(self, n: int) -> None:
        self.names = [f"document {k}" for k in range(n)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: Any) -> Any:
        k = int(name.split()[1])
        generator = torch.Generator().manual_seed(k)
        x = torch.randn(6, generator=generator)
        return torch.tensor(k), x, torch.randn(1, generator=generator)


class Values(Dataset[Any]):
    """Samples that all have one value, which may be changed."""

    def __init__(self, n: int) -> None:
        self.n, self.value = n, 1.0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, k: Any) -> Any:
        return torch.tensor(int(k)), torch.full((6,), self.value + int(k)), torch.zeros(1)


class Ahead:
    """Fetches one batch before it is needed, as accelerate and CUDA prefetchers do."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        following = next(iterator)
        for batch in iterator:
            yield following
            following = batch
        yield following


class InThread:
    """Another thread iterates, a queue hands over."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        batches: queue.Queue[Any] = queue.Queue(maxsize=2)

        def produce() -> None:
            for batch in self.loader:
                batches.put(batch)
            batches.put(None)

        thread = threading.Thread(target=produce)
        thread.start()
        while (batch := batches.get()) is not None:
            yield batch
        thread.join()


class SkipFirst:
    """A batch sampler that leaves out the first batches, as accelerate's does on resuming."""

    def __init__(self, sampler: Any, skip: int) -> None:
        self.sampler, self.skip = sampler, skip

    def __iter__(self) -> Iterator[Any]:
        for k, batch in enumerate(self.sampler):
            if k >= self.skip:
                yield batch

    def __len__(self) -> int:
        return len(self.sampler) - self.skip


def paired(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A collate function that makes no plain stack."""
    index, x, y = zip(*batch, strict=True)
    return torch.stack(index), torch.stack(x), torch.stack(y)
