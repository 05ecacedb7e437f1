"""A small real training with poisoned samples, whose every visit is a spike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from patience import patience
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Trace, gradtrace

SAMPLES = 400
BATCH = 8


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs, targets)


def dataset(*poisoned: int, height: float = 60.0) -> TensorDataset:
    """Noisy linear regression; the targets of the poisoned samples are far off."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    targets = inputs.sum(1, keepdim=True) + torch.randn(SAMPLES, 1, generator=generator)
    targets[list(poisoned)] += height
    return TensorDataset(inputs, targets)


def train(
    data: TensorDataset,
    directory: Path | None,
    *,
    epochs: int = 2,
    seed: int = 0,
    during: Callable[[Trace, int], None] = lambda trace, step: None,
    **options: Any,
) -> tuple[nn.Module, Trace]:
    """Trains under a trace, whose exporters have time; `during` is called after each step."""
    options = {"close_timeout": patience(30.0)} | options
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    step = 0
    with gradtrace(model, loader=loader, directory=directory, **options) as trace:
        for _ in range(epochs):
            for x, y in loader:
                loss_fn(model(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 50.0)
                optimizer.step()
                optimizer.zero_grad()
                during(trace, step)
                step += 1
    return model, trace
