"""The endpoint: no client can hold it up, and nothing of it is left."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import errno
import http.client
import multiprocessing
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from patience import patience
from prometheus_servers import eventually

from gradtrace.exporters.prometheus.endpoint import Endpoint

BODY = b"x" * 300_000


@contextlib.contextmanager
def serving(size: int = len(BODY), **options: Any) -> Iterator[Endpoint]:
    """An endpoint on a free port; afterwards no thread is left and a server can have the port."""
    before = set(threading.enumerate())
    settings: dict[str, Any] = {"host": "127.0.0.1", "port": 0} | options
    endpoint = Endpoint(lambda accept: (b"x" * size, "text/plain"), **settings)
    try:
        yield endpoint
    finally:
        endpoint.close()
        assert set(threading.enumerate()) <= before
        assert_free(endpoint.port)


def test_a_page_that_cannot_be_made_is_an_error_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gets a 500 each time, and the log the error once."""

    def page(accept: str) -> tuple[bytes, str]:
        raise RuntimeError("broken")

    endpoint = Endpoint(page, host="127.0.0.1", port=0)
    try:
        assert status(endpoint.url) == 500
        assert status(endpoint.url) == 500
    finally:
        endpoint.close()
    [told] = [record for record in caplog.records if record.name == "gradtrace"]
    assert told.exc_info is not None and "broken" in str(told.exc_info[1])


def test_without_file_descriptors_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that cannot be accepted is tried some ten times a second, not all the time."""
    accept = TCPServer.get_request
    failing = threading.Event()
    tries = 0

    def exhausted(self: TCPServer) -> Any:
        nonlocal tries
        if failing.is_set():
            tries += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(TCPServer, "get_request", exhausted)
    with serving(10) as endpoint:
        failing.set()
        with socket.create_connection(("127.0.0.1", endpoint.port)) as waiting:
            eventually(lambda: tries >= 3)
            began, before = time.monotonic(), tries
            eventually(lambda: time.monotonic() - began > 0.5)
            assert tries - before <= 10
            failing.clear()
            waiting.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert waiting.recv(12) == b"HTTP/1.1 200"


def assert_free(port: int) -> None:
    """A server, which asks for the port with SO_REUSEADDR as all do, gets it."""
    socket.create_server(("127.0.0.1", port)).close()


def get(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=patience(20)
    ) as got:
        body: bytes = got.read()
        return body


def status(url: str, method: str = "GET", **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=patience(20)) as answer:
            code: int = answer.status
            return code
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def raw(port: int, request: bytes) -> bytes:
    """What comes back for these bytes until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience(20)) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


def scrapes() -> int:
    """How many threads serve somebody."""
    return sum(thread.name == "gradtrace-scrape" for thread in threading.enumerate())


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side ends the connection within 20 seconds."""
    connection.settimeout(patience(20))
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def test_the_page_is_served_and_the_port_is_free_after() -> None:
    """Pages arrive whole, also below a proxy's prefix; closing frees the port at once."""
    with serving() as endpoint:
        assert endpoint.url == f"http://127.0.0.1:{endpoint.port}/metrics"
        base = endpoint.url.removesuffix("/metrics")
        for path in ("", "/", "/metrics", "/metrics/", "/metrics?x=1", "/train/metrics"):
            assert get(base + path) == BODY
    # Not even a connection that is being forgotten keeps it.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", endpoint.port))
    with pytest.raises(urllib.error.URLError):
        get(endpoint.url)


def test_it_listens_on_this_machine_only() -> None:
    """Another address of this machine has nobody listening."""
    with serving() as endpoint, pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", endpoint.port), timeout=patience(5))
    with serving(host="0.0.0.0") as endpoint:
        assert "127.0.0.1" in endpoint.url
        socket.create_connection(("127.0.0.2", endpoint.port), timeout=patience(5)).close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_is_served() -> None:
    """An IPv6 address is bound, and stands in brackets in the URL."""
    try:
        endpoint = Endpoint(lambda accept: (BODY, "text/plain"), host="::1", port=0)
    except OSError:
        pytest.skip("this machine has no ::1")
    with contextlib.closing(endpoint):
        assert endpoint.url == f"http://[::1]:{endpoint.port}/metrics"
        assert get(endpoint.url) == BODY


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", b" 404 "),
        (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", b" 404 "),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b" 405 "),
        (b"BREW /metrics HTTP/1.1\r\n\r\n", b" 405 "),
        (b"\x00\xff\xfe nonsense\r\n\r\n", b" 400 "),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b" 505 "),
        (b"GET / / HTTP/1.1\r\n\r\n", b" 400 "),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b" 414 "),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b" 431 "),
        (b"\r\n\r\n", b""),
        (b"", b""),
    ],
)
def test_garbage_is_refused(request_: bytes, answer: bytes) -> None:
    """What is no request for the page gets its error, in order, and the page is served after."""
    with serving(seconds=2.0) as endpoint:
        assert answer in raw(endpoint.port, request_).split(b"\r\n", 1)[0]
        assert get(endpoint.url) == BODY


def test_head_has_no_body() -> None:
    """HEAD tells the length only."""
    with serving() as endpoint:
        got = raw(endpoint.port, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert f"Content-Length: {len(BODY)}".encode() in got and got.endswith(b"\r\n\r\n")


def test_the_client_closes_first() -> None:
    """A connection does not outlast its answer: its client is told to close, and waited for."""
    with serving() as endpoint:
        connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=patience(20))
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.read() == BODY and answer.getheader("Connection") == "close"
        connection.close()


def test_slow_clients_hold_up_nobody() -> None:
    """Headers that never end, answers that nobody reads: others are served, and theirs is cut."""
    with contextlib.ExitStack() as clients, serving(30_000_000, seconds=1.0) as endpoint:
        for k in range(8):
            slow = clients.enter_context(socket.create_connection(("127.0.0.1", endpoint.port)))
            # The first ones wait for our answer to be read, the others for the rest of theirs.
            slow.sendall(b"GET /metrics HTTP/1.1\r\n" + (b"\r\n" if k < 4 else b"A: "))
        eventually(lambda: scrapes() == 8)
        began = time.monotonic()
        assert status(endpoint.url + "/nothing") == 404
        assert time.monotonic() - began < patience(0.9)
        eventually(lambda: not scrapes(), 20)


def test_a_client_that_drips_is_cut_off() -> None:
    """A byte now and then does not lengthen a connection's time."""
    with serving(seconds=1.0) as endpoint:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", endpoint.port)) as connection:
            connection.settimeout(0.1)
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET /metrics HTTP/1.1\r\n")
                while time.monotonic() - began < 20:
                    connection.sendall(b"A")
                    with contextlib.suppress(TimeoutError):
                        if not connection.recv(1):
                            break
        assert time.monotonic() - began < patience(10)


def test_too_many_connections_cost_the_oldest() -> None:
    """A flood of idle connections does not keep the next scrape out."""
    with serving(connections=4) as endpoint:
        idle = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(50)]
        assert get(endpoint.url) == BODY
        assert is_closed(idle[0])
        for connection in idle:
            connection.close()


def test_many_at_once_are_served() -> None:
    """Scrapes at the same time each get the whole page."""
    with serving() as endpoint:
        got: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: got.append(get(endpoint.url))) for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [BODY] * 12


def test_closing_may_wait_for_a_page_under_way() -> None:
    """A page that is being made when the endpoint closes arrives whole, if there is patience."""
    making, go_on = threading.Event(), threading.Event()

    def page(accept: str) -> tuple[bytes, str]:
        making.set()
        go_on.wait(patience(20))
        return BODY, "text/plain"

    endpoint = Endpoint(page, host="127.0.0.1", port=0)
    got: list[bytes] = []
    client = threading.Thread(target=lambda: got.append(get(endpoint.url)))
    client.start()
    assert making.wait(patience(20))
    closing = threading.Thread(target=lambda: endpoint.close(patience=20))
    closing.start()
    closing.join(0.3)  # longer than closing takes where nothing is under way
    assert closing.is_alive()
    go_on.set()
    client.join(patience(20))
    closing.join(patience(20))
    assert got == [BODY]
    assert_free(endpoint.port)


def test_closing_cuts_off_who_is_connected() -> None:
    """Closing takes no longer for clients that never finish, and the port is free all the same."""
    with contextlib.ExitStack() as clients:
        with serving() as endpoint:
            for _ in range(5):
                connection = clients.enter_context(
                    socket.create_connection(("127.0.0.1", endpoint.port))
                )
                connection.sendall(b"GET /metr")
            eventually(
                lambda: sum(t.name == "gradtrace-scrape" for t in threading.enumerate()) == 5
            )
            began = time.monotonic()
        assert time.monotonic() - began < patience(3)


def wait_in_child(ready: Any, done: Any) -> None:
    ready.set()
    done.wait(patience(60))


def test_a_forked_child_does_not_keep_the_port() -> None:
    """With a child of a fork alive, closing frees the port, and the child serves nobody."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    with serving() as endpoint:
        with socket.create_connection(("127.0.0.1", endpoint.port)) as connected:
            connected.sendall(b"GET")
            child = context.Process(target=wait_in_child, args=(ready, done))
            child.start()
            try:
                assert ready.wait(patience(60))
                assert get(endpoint.url) == BODY
                connected.sendall(b" /metrics HTTP/1.1\r\n\r\n")
                assert b"200 OK" in connected.recv(100)
                connected.close()
                endpoint.close()
                assert_free(endpoint.port)
            finally:
                done.set()
                child.join()
        assert child.exitcode == 0


def test_credentials_are_asked_for() -> None:
    """Missing, wrong and broken credentials get 401, the right ones the page."""
    with serving(auth=("me", "s3cret:é")) as endpoint:
        right = base64.b64encode("me:s3cret:é".encode()).decode()
        wrong = base64.b64encode(b"me:other").decode()
        assert status(endpoint.url) == 401
        for token in ("", "x", "Basic", "Basic !!", f"Basic {wrong}", f"Bearer {right}", "Basic é"):
            assert status(endpoint.url, Authorization=token.encode().decode("latin-1")) == 401
        assert status(endpoint.url + "/none") == 401
        assert get(endpoint.url, Authorization=f"Basic {right}") == BODY
        assert get(endpoint.url, Authorization=f"basic {right}") == BODY


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server and a client it vouches for, and a stranger."""
    folder = tmp_path_factory.mktemp("certificates")
    authority_key = ec.generate_private_key(ec.SECP256R1())
    make_certificate(folder, "authority", authority_key, authority_key, "authority")
    for name in ("server", "client"):
        make_certificate(
            folder, name, ec.generate_private_key(ec.SECP256R1()), authority_key, "authority"
        )
    stranger = ec.generate_private_key(ec.SECP256R1())
    make_certificate(folder, "stranger", stranger, stranger, "stranger")
    return folder


def make_certificate(folder: Path, name: str, key: Any, issuer_key: Any, issuer: str) -> None:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def server_context(folder: Path, *, clients: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if clients:
        context.load_verify_locations(folder / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(folder: Path, name: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "authority.pem")
    if name:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_tls_is_spoken(certificates: Path) -> None:
    """The page goes out encrypted; plain requests and broken handshakes hold up nobody."""
    with serving(tls=server_context(certificates), seconds=1.0) as endpoint:
        assert endpoint.url.startswith("https://")
        # A handshake that never comes, in the way of the one that does.
        with socket.create_connection(("127.0.0.1", endpoint.port)) as mute:
            assert raw(endpoint.port, b"GET /metrics HTTP/1.1\r\n\r\n").count(BODY) == 0
            with urllib.request.urlopen(
                endpoint.url, context=client_context(certificates), timeout=patience(20)
            ) as got:
                assert got.read() == BODY
            assert is_closed(mute)


def test_clients_without_a_certificate_are_refused(certificates: Path) -> None:
    """With an authority for clients, those it vouches for get the page, others an alert."""
    with serving(tls=server_context(certificates, clients=True)) as endpoint:
        known = client_context(certificates, "client")
        with urllib.request.urlopen(endpoint.url, context=known, timeout=patience(20)) as got:
            assert got.read() == BODY
        for name in (None, "stranger"):
            with pytest.raises(OSError):
                urllib.request.urlopen(
                    endpoint.url, context=client_context(certificates, name), timeout=patience(20)
                ).read()


def test_nothing_leaks() -> None:
    """Hundreds of scrapes, errors and cut connections leave no file open and no thread."""
    with serving() as endpoint:
        get(endpoint.url)
        eventually(lambda: not scrapes())
        before = len(os.listdir("/proc/self/fd"))
        for k in range(200):
            if k % 3 == 0:
                get(endpoint.url)
            elif k % 3 == 1:
                raw(endpoint.port, b"junk\r\n\r\n")
            else:
                socket.create_connection(("127.0.0.1", endpoint.port)).close()
        eventually(lambda: not scrapes())
        assert len(os.listdir("/proc/self/fd")) <= before
