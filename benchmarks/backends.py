"""Exporters with a backend each, started on this machine and ended with the process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from gradtrace.exporter import Exporter

NAMES = ("prometheus", "mlflow", "wandb", "tensorboard", "opentelemetry")


_servers: list[subprocess.Popen[bytes]] = []


def stop() -> None:
    """Ends the servers of this process."""
    while _servers:
        _servers.pop().kill()


def exporter(name: str) -> Exporter:
    """An exporter and what it sends to."""
    made: Exporter = globals()[f"_{name}"]()
    return made


def _prometheus() -> Any:
    """Scraped each second, as often as anybody does."""
    from gradtrace.exporters import PrometheusExporter

    made = PrometheusExporter(port=0)

    def scrape() -> None:
        while True:
            time.sleep(1.0)
            if made.url:
                urllib.request.urlopen(made.url).read()

    threading.Thread(target=scrape, daemon=True).start()
    return made


def _mlflow() -> Any:
    from gradtrace.exporters import MLflowExporter

    folder = Path(tempfile.mkdtemp())
    port = _free_port()
    store, files = f"sqlite:///{folder / 'mlflow.db'}", str(folder)
    command = ["-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--artifacts-destination", files, "--port", str(port), "--workers", "1"]
    _serve(
        command,
        port,
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    return MLflowExporter(tracking_uri=f"http://127.0.0.1:{port}")


def _wandb() -> Any:
    from gradtrace.exporters import WandbExporter

    os.environ["WANDB_SILENT"] = "true"
    return WandbExporter(project="bench", mode="offline", directory=tempfile.mkdtemp())


def _tensorboard() -> Any:
    from gradtrace.exporters import TensorBoardExporter

    return TensorBoardExporter(tempfile.mkdtemp())


def _opentelemetry() -> Any:
    from gradtrace.exporters import OpenTelemetryExporter

    port = _free_port()
    _serve(["-m", "oteltap", "--port", str(port)], port)
    return OpenTelemetryExporter(endpoint=f"http://127.0.0.1:{port}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _serve(arguments: list[str], port: int, **environment: str) -> None:
    """Starts a server of its own process and waits until it listens."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment,
        start_new_session=True,
    )
    _servers.append(process)
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"{' '.join(arguments[:3])} did not start")
