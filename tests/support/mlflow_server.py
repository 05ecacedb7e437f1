"""A real MLflow server for tests, one that never answers, and one whose answers get lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from patience import patience

READY_WITHIN = 120.0


class MlflowServer:
    """`mlflow server` on a sqlite file; can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers. Raises RuntimeError with its log if it does not."""
        store = f"sqlite:///{self._folder / 'mlflow.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = self._folder / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=clean_environment() | quiet,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + patience(READY_WITHIN)
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/health", timeout=patience(2)).close()
                return
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"mlflow server did not start:\n{log.read_text(errors='replace')}")

    def kill(self) -> None:
        """SIGKILL for the server and its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class LossyProxy:
    """Passes requests on to a server, one at a time, but not every answer back.

    For each request, told by its first line, `before` is called before it is passed on; `lose` is
    asked whether its answer is lost, when the server has done what was asked.
    """

    def __init__(
        self,
        port: int,
        *,
        lose: Callable[[str], bool] = lambda line: False,
        before: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._port = port
        self._lose = lose
        self._before = before
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.lost = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> LossyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake a thread that waits in accept().
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(patience(10))

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.settimeout(patience(10))
                self._pass_on(client)

    def _pass_on(self, client: socket.socket) -> None:
        with client.makefile("rb") as request:
            lines = list(iter(request.readline, b"\r\n"))
            if not lines or not lines[0]:
                return
            head = b"".join(lines).removesuffix(b"\r\n")
            [length] = re.findall(rb"(?i)\r\ncontent-length: *(\d+)", head) or [b"0"]
            body = request.read(int(length))
        line = lines[0].decode("latin-1")
        self._before(line)
        kept = re.sub(rb"(?i)\r\nconnection: *[^\r]*", b"", head) + b"\r\nConnection: close"
        with socket.create_connection(("127.0.0.1", self._port), timeout=patience(10)) as server:
            server.sendall(kept + b"\r\n\r\n" + body)
            answer = b"".join(iter(lambda: server.recv(65536), b""))
        if self._lose(line):
            self.lost += 1
        else:
            client.sendall(answer)


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """The environment without settings of MLflow."""
    return {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}


def is_missing() -> bool:
    """Whether the server cannot be had here; where CI is set it must be there."""
    found = find_spec("mlflow") and find_spec("mlflow.server")
    return not found and not os.environ.get("CI")
