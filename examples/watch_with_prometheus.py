"""A training that Prometheus watches, Alertmanager tells of and Grafana draws.

Writes the folder `monitoring`, as `gradtrace monitoring init monitoring` does; then start it with
`docker compose --project-directory monitoring up -d` while the training goes on. Some of the digits
are broken scans: their spikes are alerts within half a minute, with run, step and batch index, and
the dashboard at http://127.0.0.1:3000 shows them. The digits come with scikit-learn.

Without docker, the same files work with servers of your own: put the address that this prints into
`scrape_configs` of `prometheus.yml`.
"""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Trace, gradtrace
from gradtrace.exporters import PrometheusExporter
from gradtrace.monitoring import write_monitoring

BROKEN = 7, 700, 1234


def main(
    seconds: float = 900.0,
    port: int = 9464,
    directory: str = "gradtrace-runs",
    monitoring: str = "monitoring",
    pause: float = 0.05,
    epochs: int = 1,
) -> Trace:
    """Trains for some time, at least `epochs`, a step each `pause` seconds, to be watched."""
    torch.manual_seed(0)
    digits = load_digits()
    digits.data[list(BROKEN)] = digits.data.max() * 9
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    loader = DataLoader(
        TensorDataset(images, torch.tensor(digits.target)), batch_size=32, shuffle=True
    )
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    # Containers reach this machine from outside, so do not listen on the loopback only: in a
    # network with others, give it tls= and auth= as well.
    exporter = PrometheusExporter(port=port, host="0.0.0.0")
    if not (Path(monitoring) / "prometheus.yml").exists():
        write_monitoring(Path(monitoring), targets=[f"host.docker.internal:{port or 9464}"])

    end = time.monotonic() + seconds
    with gradtrace(model, exporters=[exporter], loader=loader, directory=directory) as trace:
        print(f"the metrics are at {exporter.url}")
        for epoch in count(1):
            for x, y in loader:
                loss = criterion(model(x), y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                time.sleep(pause)
            if time.monotonic() > end and epoch >= epochs:
                break

    for spike in trace.spikes:
        indices = ", ".join(str(batch.batch_index) for batch in spike.blamed) or "none"
        print(f"step {spike.step}, batch index {indices}: {spike.message}")
    return trace


if __name__ == "__main__":
    main()
