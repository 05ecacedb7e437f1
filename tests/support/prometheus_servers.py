"""Real servers of Prometheus' family for tests, and what to ask them."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from patience import patience

T = TypeVar("T")


def is_missing(*programs: str) -> bool:
    """Whether one of these cannot be had here; where CI is set they must be there."""
    return any(shutil.which(program) is None for program in programs) and not os.environ.get("CI")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(ask: Callable[[], T], within: float = 30.0) -> T:
    """What `ask` returns as soon as that is true; fails after `within` seconds of patience."""
    until = time.monotonic() + patience(within)
    while True:
        found = ask()
        if found or time.monotonic() > until:
            assert found, f"still {found!r} after {within} seconds"
            return found
        time.sleep(0.05)


def get_json(url: str) -> Any:
    """The answer of a server, None while there is none."""
    try:
        with urllib.request.urlopen(url, timeout=patience(10)) as answer:
            return json.loads(answer.read())
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


@contextlib.contextmanager
def server(command: Sequence[str | Path], folder: Path, ready: str) -> Iterator[None]:
    """Runs a server until the end of the block; begins once `ready`, a URL, answers."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text(errors="replace")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(ready, timeout=patience(2)).close()
                return True
            return False

        eventually(answers)
        yield
    finally:
        process.kill()
        process.wait()


class Prometheus:
    """A running Prometheus server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, expr: str, **options: Any) -> list[dict[str, Any]]:
        """The result of an instant query; fails when the server refuses it."""
        asked = urllib.parse.urlencode({"query": expr} | options)
        try:
            url = f"{self.url}/api/v1/query?{asked}"
            with urllib.request.urlopen(url, timeout=patience(10)) as answer:
                data = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expr}: {error.read().decode()}") from error
        result: list[dict[str, Any]] = data["data"]["result"]
        return result

    def value(self, expr: str) -> float | None:
        """The value of the one series an expression has; None while there is none."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def get(self, path: str, **options: str) -> Any:
        """The data behind another path of the API."""
        asked = urllib.parse.urlencode(options)
        answer = get_json(f"{self.url}/api/v1/{path}?{asked}")
        return None if answer is None else answer["data"]


@contextlib.contextmanager
def prometheus(folder: Path, config: str) -> Iterator[Prometheus]:
    """A server with this configuration; its data stays in `folder`."""
    port = free_port()
    path = folder / "prometheus.yml"
    path.write_text(config)
    command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"]
    command += ["--storage.tsdb.retention.time=10y"]
    with server(command, folder, f"http://127.0.0.1:{port}/-/ready"):
        yield Prometheus(port)


@contextlib.contextmanager
def alertmanager(folder: Path, config: str) -> Iterator[str]:
    """An Alertmanager with this configuration; its host and port."""
    port = free_port()
    path = folder / "alertmanager.yml"
    path.write_text(config)
    command = ["prometheus-alertmanager", f"--config.file={path}"]
    command += [f"--storage.path={folder / 'alerts'}", "--cluster.listen-address="]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with server(command, folder, f"http://127.0.0.1:{port}/-/ready"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def pushgateway(folder: Path) -> Iterator[str]:
    """A Pushgateway's host and port."""
    port = free_port()
    command = ["prometheus-pushgateway", f"--web.listen-address=127.0.0.1:{port}"]
    with server(command, folder, f"http://127.0.0.1:{port}/-/ready"):
        yield f"127.0.0.1:{port}"


class Webhook:
    """Takes what is posted to `url`."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        webhook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.posted.append(json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Webhook:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
