"""A small HTTP server for one page that others fetch: it cannot be held up, and leaves nothing.

A connection has a few seconds in all, from the handshake to the last byte. Where there are too
many, the oldest is cut off: a scrape takes milliseconds, so the oldest is never one. What comes is
answered and closed; the client closes first where it can, so that the port is free at once.
prometheus-client's server has no such limits, and asks for no password.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import hmac
import logging
import os
import socket
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import Any

logger = logging.getLogger("gradtrace")

CONNECTIONS = 16
SECONDS = 5.0
GOODBYE = 0.5
"""Seconds for the client to close first."""

Page = Callable[[str], tuple[bytes, str]]
"""From the request's Accept header to the page and its content type. Any thread."""


class Endpoint:
    """Serves `page` at `/metrics`, from its own daemon threads, until `close`.

    `host` and `port` are bound at once; port 0 takes a free one, which `port` then tells. `tls` is
    the server's context, `auth` the user and password that basic authentication asks for.
    `seconds` is what a connection has in all, `connections` how many there are at a time.

    Raises OSError where the address cannot be had.
    """

    def __init__(
        self,
        page: Page,
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        auth: tuple[str, str] | None = None,
        seconds: float = SECONDS,
        connections: int = CONNECTIONS,
    ) -> None:
        self._server = _Server(page, host, port, tls, auth, seconds, connections)
        self.port: int = self._server.server_address[1]
        shown = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
        shown = f"[{shown}]" if ":" in shown else shown
        self.url = f"http{'s' if tls else ''}://{shown}:{self.port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="gradtrace-metrics", daemon=True
        )
        self._thread.start()

    def close(self, *, patience: float = 0.0) -> None:
        """Stops listening and cuts off what is still connected; about 0.1 s. Any thread.

        Those who are being sent a page get it first, within `patience` seconds.
        """
        self._server.shutdown()
        self._server.server_close()
        self._server.finish_answers(patience)
        self._server.cut_off()
        self._thread.join()


class _Server(TCPServer):
    # A port whose last connections are still being forgotten by the system can be taken.
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        page: Page,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        auth: tuple[str, str] | None,
        seconds: float,
        connections: int,
    ) -> None:
        self.page = page
        self.told = False
        self.auth = None if auth is None else ":".join(auth).encode()
        self._tls = tls
        self._seconds = seconds
        self._most = connections
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        self._answering: set[socket.socket] = set()
        self._answered = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        [(self.address_family, _, _, _, address), *_] = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        super().__init__(address, _Handler)  # type: ignore[arg-type]
        _servers.add(self)

    def server_bind(self) -> None:
        """As it is, without asking a name server who we are."""
        if self.address_family == socket.AF_INET6 and hasattr(socket, "IPV6_V6ONLY"):
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()

    def get_request(self) -> tuple[Any, Any]:
        """The next connection; a moment later when there are no file descriptors left."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.1)  # it stays in the queue, and would be tried without end
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection; too many cost the oldest its own."""
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="gradtrace-scrape", daemon=True
        )
        with self._lock:
            if len(self._open) >= self._most:
                oldest = next(iter(self._open))
                del self._open[oldest]
                _cut(oldest)
            self._open[request] = time.monotonic() + self._seconds
        try:
            thread.start()
        except RuntimeError:  # no thread to be had
            self._forget(request)
            self.shutdown_request(request)
            return
        self._threads = [old for old in self._threads if old.is_alive()]
        self._threads.append(thread)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        connection = request
        try:
            connection.settimeout(self._seconds)
            if self._tls is not None:
                connection = self._tls.wrap_socket(
                    request, server_side=True, do_handshake_on_connect=False
                )
                with self._lock:
                    if request not in self._open:
                        return
                    # The socket has moved into the new object; so does its place in the queue.
                    self._open = {
                        connection if known is request else known: kept
                        for known, kept in self._open.items()
                    }
                connection.do_handshake()
            self.finish_request(connection, client_address)
            _wait_for_goodbye(connection)
        except (OSError, ValueError):
            pass  # the client's trouble: gone, slow, cut off, or no TLS
        finally:
            self._forget(connection)
            with contextlib.suppress(OSError):
                connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is printed into the training's output."""

    def service_actions(self) -> None:
        """Ten times a second: who has had their time is cut off."""
        now = time.monotonic()
        with self._lock:
            for connection, until in self._open.items():
                if until < now:
                    _cut(connection)

    def answers(self, connection: socket.socket) -> None:
        """A page is made for this connection."""
        with self._lock:
            self._answering.add(connection)

    def finish_answers(self, patience: float) -> None:
        """Waits until all pages under way have been taken."""
        with self._answered:
            self._answered.wait_for(lambda: not self._answering, patience)

    def cut_off(self) -> None:
        """Ends all connections and their threads."""
        with self._lock:
            for connection in self._open:
                _cut(connection)
        for thread in self._threads:
            thread.join(1.0)

    def _forget(self, connection: socket.socket) -> None:
        with self._answered:
            self._open.pop(connection, None)
            self._answering.discard(connection)
            self._answered.notify_all()

    def leave_to_parent(self) -> None:
        """In a forked child: its copies of our sockets would keep the port after we closed it."""
        for connection in [self.socket, *self._open]:
            with contextlib.suppress(OSError):
                # Not `close` of a TLS socket, which might say goodbye in the parent's name.
                os.close(connection.detach())
        self._open = {}


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "gradtrace"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """One request a connection."""
        self.close_connection = True
        self.command = ""
        self.handle_one_request()

    def do_GET(self) -> None:
        """The page, or why not."""
        self.close_connection = True
        if not self._may_pass():
            return
        path = self.path.partition("?")[0].rstrip("/")
        # Behind a proxy the path may have a prefix.
        if path and not path.endswith("/metrics"):
            self._answer(HTTPStatus.NOT_FOUND, b"the metrics are at /metrics\n")
            return
        self.server.answers(self.connection)
        try:
            body, kind = self.server.page(self.headers.get("Accept", ""))
        except Exception:
            if not self.server.told:  # not at every scrape
                self.server.told = True
                logger.exception("the metrics' page could not be made")
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"the page could not be made\n")
            return
        self._answer(HTTPStatus.OK, body, kind)

    do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors that http.server finds, in one line of text."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self.close_connection = True
        # What could not be read as a request counts as one of HTTP 0.9, which knows no status.
        self.request_version = self.protocol_version
        more = {"Allow": "GET, HEAD"} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        self._answer(status, f"{status.phrase}\n".encode(), **more)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Nothing is printed into the training's output."""

    def _may_pass(self) -> bool:
        expected = self.server.auth
        if expected is None:
            return True
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        given = b""
        if scheme.lower() == "basic":
            with contextlib.suppress(binascii.Error, ValueError):
                given = base64.b64decode(token.strip(), validate=True)
        if hmac.compare_digest(given, expected):
            return True
        more = {"WWW-Authenticate": 'Basic realm="gradtrace", charset="UTF-8"'}
        self._answer(HTTPStatus.UNAUTHORIZED, b"user and password are needed\n", **more)
        return False

    def _answer(
        self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8", **more: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _wait_for_goodbye(connection: socket.socket) -> None:
    """Lets the client close first; what it still sends is read and thrown away."""
    until = time.monotonic() + GOODBYE
    while (left := until - time.monotonic()) > 0:
        connection.settimeout(left)
        if not connection.recv(65536):
            return


def _cut(connection: socket.socket) -> None:
    """Wakes the thread that reads or writes there, with an error.

    The connection is reset: closed in order, it would go on sending what nobody reads.
    """
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


_servers: weakref.WeakSet[_Server] = weakref.WeakSet()


def _after_fork() -> None:
    for server in list(_servers):
        server.leave_to_parent()


# Per process by nature: a fork copies every socket there is.
os.register_at_fork(after_in_child=_after_fork)
