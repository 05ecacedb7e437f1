"""Compares three learning rates in Weights & Biases: one run each, in one group.

Works without an account or a network: the runs are written to the folder `wandb` below
`directory`. `wandb sync --include-offline DIRECTORY/wandb/offline-run-*` uploads them; group the
charts by `learning rates`, and sort the runs by `gradtrace/spike_share` or by
`gradtrace/grad_norm_p95`.
"""

from __future__ import annotations

from itertools import chain, islice, repeat
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import gradtrace
from gradtrace.exporters import WandbExporter

RATES = (0.01, 0.1, 1.0)


def main(directory: str = "gradtrace-runs", steps: int = 200) -> dict[float, Path]:
    """Trains a classifier of handwritten digits at each rate; the W&B run's folder by rate."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    folders: dict[float, Path] = {}
    for rate in RATES:
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        criterion = nn.CrossEntropyLoss()
        exporter = WandbExporter(
            project="digits", group="learning rates", mode="offline", directory=directory
        )
        config = {"lr": rate, "optimizer": {"name": "SGD", "momentum": 0.9}}

        with gradtrace(
            model, exporters=[exporter], loader=loader, directory=directory, config=config
        ) as trace:
            for x, y in islice(chain.from_iterable(repeat(loader)), steps):
                loss = criterion(model(x), y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

        folders[rate] = Path(exporter.run.dir).parent
        clipped = trace.clipping.fraction
        print(f"lr {rate}: loss {loss.item():.3f}, clipped {clipped:.0%}, {folders[rate]}")
        for note in trace.notes:
            print(note.message)
    return folders


if __name__ == "__main__":
    main()
