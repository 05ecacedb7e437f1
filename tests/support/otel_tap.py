"""A real OTLP receiver for tests, and a small one that answers what it is told to."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from patience import patience
from prometheus_servers import eventually, free_port


class Tap:
    """What a receiver has been sent."""

    def __init__(self, url: str, out: Path) -> None:
        self.url = url
        self._out = out

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Metrics and log records, in order."""
        lines = self._out.read_text(encoding="utf-8").splitlines()
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # a banner, or half a line
                found.append(json.loads(line))
        return found

    def points(self, name: str) -> list[dict[str, Any]]:
        """All points of a metric, in order."""
        return [
            point
            for message in self.messages
            if message.get("name") == name
            for point in (message.get("sum") or message["gauge"])["dataPoints"]
        ]

    def by_time(self, name: str, **attributes: str) -> dict[float, float]:
        """Values by unix time of the series with these attributes."""
        return {
            int(point["timeUnixNano"]) / 1e9: float(point["asDouble"])
            for point in self.points(name)
            if attributes.items() <= labels(point).items()
        }

    @property
    def logs(self) -> list[dict[str, Any]]:
        """All log records."""
        return [message for message in self.messages if "severityText" in message]


def labels(message: dict[str, Any]) -> dict[str, Any]:
    """Attributes by name."""
    return {a["key"]: next(iter(a["value"].values())) for a in message["attributes"]}


@contextlib.contextmanager
def tap(folder: Path) -> Iterator[Tap]:
    """Runs oteltap until the end of the block."""
    port = free_port()
    out = folder / "tap.json"
    with out.open("wb") as into:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "oteltap", "--port", str(port)], stdout=into
        )
    try:

        def listens() -> bool:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=patience(1)).close()
                return True
            return False

        eventually(listens)
        yield Tap(f"http://127.0.0.1:{port}", out)
    finally:
        process.kill()
        process.wait()


class Answering:
    """A collector that answers `status` and `body`, and keeps requests with path and headers."""

    def __init__(self, status: int = 200, body: bytes = b"") -> None:
        self.status = status
        self.body = body
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        answering = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answering.requests.append((self.path, dict(self.headers), body))
                self.send_response(answering.status)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(answering.body)))
                self.end_headers()
                self.wfile.write(answering.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def is_missing() -> bool:
    """Whether the receiver cannot be had here; where CI is set it must be there."""
    return find_spec("oteltap") is None and not os.environ.get("CI")
