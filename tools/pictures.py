"""Makes the pictures in docs/ anew: `make pictures`, or some with `python tools/pictures.py spike`.

`spike` is drawn by gradtrace itself. The others are what real servers show of runs that are trained
for it here: Prometheus (`prometheus`, `alerts`), MLflow (`mlflow`) and TensorBoard (`histograms`),
photographed with Chromium. What cannot be made here is named with what is missing, the rest is
made, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import urlencode

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
QUIET += "--disable-background-networking --disable-component-update --disable-sync"

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PROMETHEUS = ("prometheus",)
ALERTMANAGER = ("prometheus-alertmanager", "alertmanager")
SPIKE_SIZE = (9.0, 8.0)
"""Inches: a page wide, and low enough for the first screen of the README."""
TEXT = 26
"""Characters of a document that stand beside its number."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Pictures that are made together: their names, what makes them, and what that takes.

    Of each tuple in `programs` one must be on the PATH, all of `modules` must be installed.
    """

    names: tuple[str, ...]
    make: Callable[[Path, Path], None]
    programs: tuple[tuple[str, ...], ...] = ()
    modules: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """What is not here, in words."""
        found = [
            f"the program {' or '.join(names)}"
            for names in self.programs
            if not any(map(shutil.which, names))
        ]
        return found + [
            f"the Python package {name}" for name in self.modules if not installed(name)
        ]


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False


def example(name: str) -> ModuleType:
    """An example, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shoot(url: str, target: Path, size: str, wait: float = 8.0) -> None:
    """A picture of a page, once its scripts have had `wait` seconds."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)))
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *QUIET.split(), f"--user-data-dir={profile}"]
        command += [f"--window-size={size}", f"--virtual-time-budget={round(wait * 1000)}"]
        command += [f"--screenshot={target}", url]
        subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)
    if not target.exists():
        raise RuntimeError(f"Chromium made no picture of {url}")


def spike(folder: Path, to: Path) -> None:
    """The clearest spike of examples/llm_spikes.py, its documents with the start of their text."""
    from torch.utils.data import RandomSampler

    from gradtrace import load_run
    from gradtrace.demo.documents import Documents, collate
    from gradtrace.demo.training import token_loss
    from gradtrace.plots import spike_figure

    data = Documents(seed=0)
    _, trace = example("llm_spikes").train(data, RandomSampler(data), 2, str(folder))
    assert trace.path is not None
    one = max((s for s in trace.spikes if s.signal == "loss"), key=lambda spike: spike.ratio)
    found = trace.suspects(one, data, token_loss, collate=collate)
    texts = {s.sample_id: " ".join(data.decode(data[s.sample_id]).split()) for s in found}
    named = [
        dataclasses.replace(s, sample_id=f"{s.sample_id}: {texts[s.sample_id][:TEXT]}")
        for s in found
    ]
    figure = spike_figure(
        load_run(trace.path), one, dataclasses.replace(found, samples=tuple(named))
    )
    figure.set_size_inches(*SPIKE_SIZE)
    for axis in figure.axes[:2]:  # so low, their legends need room above the curves
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** 0.4)
        axis.legend(loc="upper left", ncols=3, fontsize=8, frameon=False)
    figure.savefig(to / "spike.png", dpi=120)


def alerts(folder: Path, to: Path) -> None:
    """Prometheus' graph of a spiking run, and the alert that came of it.

    Debian's Alertmanager has no pages: what it got is checked.
    """
    from prometheus_servers import (
        Webhook,
        alertmanager,
        eventually,
        free_port,
        get_json,
        prometheus,
    )

    from gradtrace.monitoring import write_monitoring

    port = free_port()
    write_monitoring(folder, targets=[f"127.0.0.1:{port}"])
    training = threading.Thread(
        target=example("watch_with_prometheus").main,
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
        with alertmanager(folder, routes) as at:
            config = (folder / "prometheus.yml").read_text().replace("alertmanager:9093", at)
            with prometheus(folder, config.replace("5s", "1s")) as server:
                eventually(lambda: webhook.posted, 90)
                # Until a scrape has seen a spike itself, beside the counter.
                high = "max_over_time(gradtrace_grad_norm[1m]) > 3"
                eventually(lambda: server.query(high), 60)
                shown = {"g0.expr": "gradtrace_grad_norm", "g0.tab": 0, "g0.range_input": "1m"}
                page = f"{server.url}/graph?{urlencode(shown)}"
                shoot(page, to / "prometheus.png", "1200,720")
                assert get_json(f"http://{at}/api/v2/alerts")
                shoot(f"{server.url}/classic/alerts", to / "alerts.png", "1200,900")
    training.join()


def comparison(folder: Path, to: Path) -> None:
    """Three learning rates side by side in MLflow."""
    from mlflow import MlflowClient
    from mlflow_server import MlflowServer

    server = MlflowServer(folder)
    server.start()
    try:
        main = example("compare_mlflow").main
        runs = main(server.url, steps=150, directory=str(folder / "runs"))
        ids = [run_id for run_id in runs.values() if run_id is not None]
        experiment = MlflowClient(server.url).get_run(ids[0]).info.experiment_id
        page = f"{server.url}/#/experiments/{experiment}/runs?compareRunsMode=CHART"
        shoot(page, to / "mlflow.png", "1900,1100", 20.0)
    finally:
        server.kill()


def histograms(folder: Path, to: Path) -> None:
    """The gradients of a small classifier in TensorBoard."""
    import torch
    from prometheus_servers import eventually, free_port, get_json
    from torch import nn

    from gradtrace import Sampling, gradtrace
    from gradtrace.exporters import TensorBoardExporter

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
    command = [str(tool), "--logdir", "runs", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: get_json(f"{url}/data/plugin/histograms/tags"), 60)
            page = f"{url}/?darkMode=false#histograms"
            shoot(page, to / "histograms.png", "1200,720", 40.0)
        finally:
            server.terminate()


PICTURES = (
    Picture(("spike",), spike, modules=("matplotlib",)),
    Picture(("prometheus", "alerts"), alerts, (CHROMIUM, PROMETHEUS, ALERTMANAGER), ("sklearn",)),
    Picture(("mlflow",), comparison, (CHROMIUM,), ("mlflow.server", "sklearn")),
    Picture(("histograms",), histograms, (CHROMIUM,), ("tensorboard",)),
)
NAMES = tuple(name for picture in PICTURES for name in picture.names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the pictures that are named; the exit status."""
    parser = argparse.ArgumentParser(description="Makes the pictures in docs/ anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; or all")
    parser.add_argument("--to", type=Path, default=DOCS, help="the folder they go to")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"there is no picture {min(unknown)!r}; expected some of {', '.join(NAMES)}")
    # The tests' own servers; imported by what needs them, where it is known that all is here.
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    status = 0
    for picture in PICTURES:
        if asked.names and not set(asked.names) & set(picture.names):
            continue
        files = ", ".join(f"{name}.png" for name in picture.names)
        if missing := picture.missing():
            print(f"pictures: {files} cannot be made without {' and '.join(missing)}: install that")
            status = 1
            continue
        print(f"pictures: {files} ...", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            picture.make(Path(temporary), asked.to)
    return status


if __name__ == "__main__":
    sys.exit(main())
