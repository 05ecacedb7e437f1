"""Exporters with a backend each, started on this machine and ended with the process."""

from __future__ import annotations

import contextlib
import os
import signal
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

BEFORE, OUTAGE = 10.0, 20.0
"""Seconds until a backend fails, and for how long it does."""

_servers: list[subprocess.Popen[bytes]] = []
_environments: list[dict[str, str]] = []


def stop() -> None:
    """Ends the servers of this process."""
    while _servers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_servers.pop().pid, signal.SIGKILL)


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
                with contextlib.suppress(OSError):  # the trace is over
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


def mlflow_killed() -> Any:
    """The server is killed after a while, and started again later."""
    made = _mlflow()
    restart = _servers[-1].args
    environment = _environments[-1]

    def fail() -> None:
        time.sleep(BEFORE)
        os.killpg(_servers.pop().pid, signal.SIGKILL)
        time.sleep(OUTAGE)
        _start(list(restart), environment)  # type: ignore[arg-type]

    threading.Thread(target=fail, daemon=True).start()
    return made


def wandb_killed() -> Any:
    """wandb-core is killed after a while; W&B starts another one."""
    return _wandb_failing(signal.SIGKILL)


def wandb_stopped() -> Any:
    """wandb-core is stopped after a while, and goes on later."""
    return _wandb_failing(signal.SIGSTOP)


def _wandb_failing(how: signal.Signals) -> Any:
    made = _wandb()

    def fail() -> None:
        time.sleep(BEFORE)
        cores = _children("wandb-core")
        for core in cores:
            os.kill(core, how)
        if how == signal.SIGSTOP:
            time.sleep(OUTAGE)
            for core in cores:
                os.kill(core, signal.SIGCONT)

    threading.Thread(target=fail, daemon=True).start()
    return made


def _children(name: str) -> list[int]:
    """The processes of this name that this one has started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_text().split("\0")[0]
        except (OSError, IndexError):
            continue
        if folder.name.isdigit() and int(parent) == os.getpid() and command.endswith(name):
            found.append(int(folder.name))
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _serve(arguments: list[str], port: int, **environment: str) -> None:
    """Starts a server of its own process and waits until it listens."""
    process = _start([sys.executable, *arguments], environment)
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"{' '.join(arguments[:3])} did not start")


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment,
        start_new_session=True,
    )
    _servers.append(process)
    _environments.append(environment)
    return process
