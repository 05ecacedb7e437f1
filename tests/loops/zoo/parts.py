"""What loops are put together from: small models and data whose samples know their index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Samples(TensorDataset):
    """Index, input and target of each of `n` samples; the same for the same `n`."""

    def __init__(self, n: int, width: int = 6) -> None:
        generator = torch.Generator().manual_seed(n)
        x = torch.randn(n, width, generator=generator)
        y = torch.randn(n, 1, generator=generator)
        super().__init__(torch.arange(n), x, y)


def loader_of(n: int, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    """A loader of `Samples`."""
    return DataLoader(Samples(n), batch_size=batch_size, **options)


def ids(index: Tensor) -> tuple[int, ...]:
    """A batch's own indices as plain numbers."""
    return tuple(index.tolist())


def mlp(width: int = 6, hidden: int = 8, out: int = 1) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out))


def squared(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean squared error."""
    error: Tensor = (model(x) - y).square().mean()
    return error
