"""Takes the README's pictures of real servers: `python tools/screenshots.py`, with Chromium.

Trains against a Prometheus, an Alertmanager, an MLflow and a TensorBoard server of its own, opens
their pages, and writes docs/prometheus.png, alerts.png (`alerts`), mlflow.png (`comparison`) and
histograms.png (`histograms`): all, or those named. Debian's Alertmanager has no pages; what it got
is checked.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from mlflow_server import MlflowServer  # noqa: E402 - where it is, is said above
from prometheus_servers import (  # noqa: E402 - the same
    Webhook,
    alertmanager,
    eventually,
    free_port,
    get_json,
    prometheus,
)

from gradtrace import Sampling, gradtrace  # noqa: E402 - the same
from gradtrace.exporters import TensorBoardExporter  # noqa: E402 - the same
from gradtrace.monitoring import write_monitoring  # noqa: E402 - the same

DOCS = ROOT / "docs"
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
QUIET += "--disable-background-networking --disable-component-update --disable-sync"


def example(name: str) -> Callable[..., Any]:
    """The main function of an example."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[..., Any] = module.main
    return main


def shoot(url: str, name: str, size: str, wait: float = 8.0) -> None:
    """A picture of a page, once its scripts have had `wait` seconds."""
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", *QUIET.split(), f"--user-data-dir={profile}"]
        command += [f"--window-size={size}", f"--virtual-time-budget={round(wait * 1000)}"]
        command += [f"--screenshot={DOCS / name}", url]
        subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)
    print(DOCS / name)


def alerts(folder: Path) -> None:
    """Prometheus' graph of a spiking run, and the alert that came of it."""
    port = free_port()
    write_monitoring(folder, targets=[f"127.0.0.1:{port}"])
    training = threading.Thread(
        target=example("watch_with_prometheus"),
        kwargs={
            "seconds": 60.0,
            "port": port,
            "directory": str(folder / "runs"),
            "monitoring": str(folder),
        },
    )
    training.start()
    with Webhook() as webhook:
        routes = (folder / "alertmanager.yml").read_text()
        routes = routes.replace("http://host.docker.internal:9095/", webhook.url)
        with alertmanager(folder, routes) as to:
            config = (folder / "prometheus.yml").read_text().replace("alertmanager:9093", to)
            with prometheus(folder, config.replace("5s", "1s")) as server:
                eventually(lambda: webhook.posted, 90)
                # Until a scrape has seen a spike itself, beside the counter.
                high = "max_over_time(gradtrace_grad_norm[1m]) > 3"
                eventually(lambda: server.query(high), 60)
                shown = {"g0.expr": "gradtrace_grad_norm", "g0.tab": 0, "g0.range_input": "1m"}
                shoot(f"{server.url}/graph?{urlencode(shown)}", "prometheus.png", "1200,720")
                assert get_json(f"http://{to}/api/v2/alerts")
                shoot(f"{server.url}/classic/alerts", "alerts.png", "1200,900")
    training.join()


def comparison(folder: Path) -> None:
    """Three learning rates side by side in MLflow."""
    from mlflow import MlflowClient

    server = MlflowServer(folder)
    server.start()
    try:
        runs = example("compare_mlflow")(server.url, steps=150, directory=str(folder / "runs"))
        ids = [run_id for run_id in runs.values() if run_id is not None]
        experiment = MlflowClient(server.url).get_run(ids[0]).info.experiment_id
        shoot(
            f"{server.url}/#/experiments/{experiment}/runs?compareRunsMode=CHART",
            "mlflow.png",
            "1900,1100",
            20.0,
        )
    finally:
        server.kill()


def histograms(folder: Path) -> None:
    """The gradients of a small classifier in TensorBoard."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(60, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    truth = torch.randn(60, 10)
    board = TensorBoardExporter(folder / "runs" / "digits")
    every = Sampling(histograms=25, first=0)
    with gradtrace(model, exporters=[board], sampling=every, directory=None):
        for _ in range(300):
            x = torch.randn(64, 60)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), (x @ truth).argmax(1)).backward()
            optimizer.step()
    port = free_port()
    tool = Path(sys.executable).with_name("tensorboard")
    command = [tool, "--logdir", "runs", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            tags = f"{url}/data/plugin/histograms/tags"
            eventually(lambda: get_json(tags), 60)
            shoot(f"{url}/?darkMode=false#histograms", "histograms.png", "1200,720", 40.0)
        finally:
            server.terminate()


if __name__ == "__main__":
    names = sys.argv[1:]
    for take in (alerts, comparison, histograms):
        if names and take.__name__ not in names:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            take(Path(temporary))
