"""The smallest use: wrap a training loop, change nothing in it.

Trains a small classifier of made-up data; needs nothing that gradtrace itself does not.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Trace, gradtrace


def main(epochs: int = 10, directory: str = "gradtrace-runs") -> Trace:
    """Trains for some epochs and returns the ended trace."""
    torch.manual_seed(0)
    inputs = torch.randn(1800, 64)
    labels = (inputs @ torch.randn(64, 10)).argmax(1)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss()

    with gradtrace(model, exporters=["console"], loader=loader, directory=directory) as trace:
        for _ in range(epochs):
            for x, y in loader:
                loss = criterion(model(x), y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    hardest = max(trace.steps, key=lambda step: step.grad_norm or 0.0)
    print(f"run: {trace.path}")
    print(f"clipped: {trace.clipping.fraction:.0%} of {trace.clipping.steps} steps")
    print(f"largest gradient: {hardest.grad_norm:.2f} at step {hardest.step}")
    print(f"its samples: {hardest.batches[0].sample_ids}")
    print(f"overhead: {trace.overhead.per_step * 1e6:.0f} microseconds a step")
    return trace


if __name__ == "__main__":
    main()
