"""Compares three learning rates in MLflow: one run each, side by side in its table and charts.

Start a server with `mlflow server`, then set MLFLOW_TRACKING_URI=http://127.0.0.1:5000. Sort the
runs by `gradtrace/spike_share` or `gradtrace/grad_norm_p95`, or plot `gradtrace/loss` of all three.
"""

from __future__ import annotations

from itertools import chain, islice, repeat

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import gradtrace
from gradtrace.exporters import MLflowExporter

RATES = (0.01, 0.1, 1.0)


def main(
    tracking_uri: str | None = None, steps: int = 200, directory: str = "gradtrace-runs"
) -> dict[float, str | None]:
    """Trains a classifier of handwritten digits at each rate; the MLflow run's id by rate."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    runs: dict[float, str | None] = {}
    for rate in RATES:
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        criterion = nn.CrossEntropyLoss()
        exporter = MLflowExporter(tracking_uri=tracking_uri, experiment="learning rates")
        config = {"lr": rate, "optimizer": {"name": "SGD", "momentum": 0.9}}

        with gradtrace(
            model,
            exporters=[exporter],
            loader=loader,
            directory=directory,
            config=config,
            close_timeout=60.0,
        ) as trace:
            for x, y in islice(chain.from_iterable(repeat(loader)), steps):
                loss = criterion(model(x), y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

        runs[rate] = exporter.run_id
        clipped = trace.clipping.fraction
        print(f"lr {rate}: loss {loss.item():.3f}, clipped {clipped:.0%}, run {exporter.run_id}")
        for note in trace.notes:
            print(note.message)
    return runs


if __name__ == "__main__":
    main()
