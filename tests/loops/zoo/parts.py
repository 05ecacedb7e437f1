"""What loops are put together from: small models and data whose samples know their index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.truth import Batch, Truth


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


class Training:
    """A model and its optimizer, and what a normal step is."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.model = mlp()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)

    def step(self, x: Any, y: Any, *batches: Batch) -> None:
        """Forward, backward, step, zero."""
        loss = squared(self.model, x, y)
        loss.backward()
        self.truth.backward(loss, *batches)
        self.truth.gradients(self.model)
        self.use()

    def use(self) -> None:
        """The optimizer uses the gradients."""
        self.truth.step(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def finish(self, **things: Any) -> None:
        """The end of the loop."""
        self.truth.finish(model=self.model, optimizer=self.optimizer, **things)
