"""The run as metrics that a Prometheus server scrapes, or that are pushed to a Pushgateway."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradtrace.exporters._checks import (
    check_count,
    check_max_series,
    check_seconds,
    check_text,
    needed,
)
from gradtrace.exporters._exposition import label_texts, render
from gradtrace.exporters._keys import spelt
from gradtrace.exporters.prometheus.endpoint import Endpoint
from gradtrace.exporters.prometheus.pushgateway import EVERY, Pusher, check_gateway
from gradtrace.exporters.prometheus.security import Tls, checked_auth, tls_context
from gradtrace.metrics.layers import Layers, check_layers
from gradtrace.metrics.samples import RunSamples
from gradtrace.records import Record, RunInfo

logger = logging.getLogger("gradtrace")

LOOPBACK = ("127.0.0.1", "::1", "localhost")
TRIES = 100
"""Ports that are tried, where the first ones are taken."""
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class PrometheusExporter:
    """Shows the run's present values, and counters of what happened once, at `url`.

    Listens on `port` plus the rank, of this machine only unless `host` says otherwise; where that
    is taken, on the next port that is free, which is logged. Port 0 takes any. All series carry
    `run` and `rank`. `layers`: how many layers beside the groups, or globs over their names; never
    more than `max_series` series in all.

    `tls`: paths of certificate and key, with a third one of the authority that clients must show a
    certificate of; or an `ssl.SSLContext`. `auth`: user and password for basic authentication.

    `pushgateway`, an address such as "127.0.0.1:9091", gets the same each `push_every` seconds
    under `job`, and gets it taken back when the trace is closed; `push_auth` is what it asks for.
    It needs the package prometheus-client, serving needs nothing.

    At the end the port is free at once, and Prometheus sees a run vanish, as if it had been killed.
    With `linger` the page is served on until a scrape has seen `gradtrace_run_active 0`, at most so
    many seconds, and no longer than leaving the `with` waits for.

    Counters carry step and batch index of their newest increase as exemplar, in OpenMetrics.
    A scrape of 1,000 series costs about 1 ms.

    Raises ImportError where `pushgateway` is given and prometheus-client is not installed,
    TypeError or ValueError for wrong settings, and OSError for files that cannot be read.
    """

    name = "prometheus"

    def __init__(
        self,
        port: int = 9464,
        *,
        host: str = "127.0.0.1",
        layers: Layers = 20,
        max_series: int = 1000,
        tls: Tls | None = None,
        auth: tuple[str, str] | None = None,
        pushgateway: str | None = None,
        job: str = "gradtrace",
        push_every: float = EVERY,
        push_auth: tuple[str, str] | None = None,
        linger: float = 0.0,
    ) -> None:
        expected = "an int, a port such as 9464, or 0 for any that is free"
        check_count("port", port, 0, 65535, expected)
        check_max_series(max_series)
        check_text("host", host, "an address to listen on, such as 127.0.0.1")
        check_text("job", job, "the job's name at the Pushgateway")
        self._linger = check_seconds("linger", linger, "0 or more, such as 10")
        self._push_every = check_seconds(
            "push_every", push_every, f"more than 0, such as {EVERY:g}", above=True
        )
        self._client: Any = None
        if pushgateway is not None:
            check_text("pushgateway", pushgateway, "its address, such as 127.0.0.1:9091")
            check_gateway(pushgateway)
            [self._client] = needed(
                "prometheus_client",
                by="PrometheusExporter(pushgateway=...)",
                extra="pushgateway",
            )
        self._port = port
        self._host = host
        self._layers = check_layers(layers)
        self._max_series = max_series
        self._tls = tls_context(tls)
        self._auth = checked_auth("auth", auth)
        self._gateway = pushgateway
        self._job = job
        self._push_auth = checked_auth("push_auth", push_auth)
        self._lock = threading.Lock()
        self._dropped: Callable[[], Mapping[str, int]] = dict
        self._active = True
        self._end_was_seen = threading.Event()
        self._samples: RunSamples | None = None
        self._endpoint: Endpoint | None = None
        self._pusher: Pusher | None = None
        self._url: str | None = None
        if self._auth is not None and self._tls is None and host not in LOOPBACK:
            logger.warning(
                "exporter prometheus: the password goes over the network unencrypted: set tls"
            )

    @property
    def url(self) -> str | None:
        """Where it serves, or served last; None before the trace starts. Any thread."""
        return self._url

    def open(self, run: RunInfo) -> None:
        """Starts to listen. Raises OSError when the address cannot be had, or no port is free."""
        self._samples = RunSamples(run, layers=self._layers, max_series=self._max_series)
        self._texts = label_texts(self._max_series)
        self._active = True
        self._end_was_seen.clear()
        self._endpoint = self._listen(run.rank, max(1, run.world_size))
        self._url = self._endpoint.url
        logger.info("exporter prometheus serves run %s at %s", run.name, self._url)
        if self._gateway is not None:
            self._pusher = Pusher(
                self._client,
                lambda: self._page("")[0],
                gateway=self._gateway,
                job=self._job,
                # The gateway refuses what it cannot spell, and an empty value is none.
                labels={"run": spelt(run.name), "rank": str(run.rank)},
                auth=self._push_auth,
                every=self._push_every,
            )

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """Shows what all exporters of the trace have lost."""
        self._dropped = dropped

    def export(self, records: Sequence[Record]) -> None:
        """Takes the values in; nothing is sent, so nothing can fail."""
        self.remember(records)

    def remember(self, records: Sequence[Record]) -> None:
        """Counts what an earlier process has shown."""
        assert self._samples is not None
        with self._lock:
            for record in records:
                self._samples.update(record)

    def hurry(self) -> None:
        """Ends the lingering."""
        self._end_was_seen.set()

    def close(self) -> None:
        """Stops listening and takes the run back from the Pushgateway. The port is free then."""
        self._active = False
        if self._endpoint is not None:
            self._end_was_seen.wait(self._linger)
            # Who has seen the end has it when the page has arrived.
            self._endpoint.close(patience=min(2.0, self._linger))
            self._endpoint = None
        if self._pusher is not None:
            self._pusher.close()
            self._pusher = None

    def _page(self, accept: str) -> tuple[bytes, str]:
        openmetrics = "application/openmetrics-text" in accept
        assert self._samples is not None
        active = self._active
        with self._lock:
            families = self._samples.families(dropped=self._dropped(), active=active)
        if not active:
            self._end_was_seen.set()
        page = render(families, self._texts, openmetrics=openmetrics)
        return page, OPENMETRICS if openmetrics else PLAIN

    def _listen(self, rank: int, ranks: int) -> Endpoint:
        """Ports are tried that no other rank tries."""
        for k in range(TRIES if self._port else 1):
            port = self._port + rank + k * ranks if self._port else 0
            if port > 65535:
                break
            try:
                found = Endpoint(
                    self._page, host=self._host, port=port, tls=self._tls, auth=self._auth
                )
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                if k:
                    logger.warning(
                        "exporter prometheus: port %d is taken; metrics are at %s",
                        self._port + rank,
                        found.url,
                    )
                return found
        raise OSError(
            errno.EADDRINUSE,
            f"no port is free on {self._host} from {self._port + rank} on; expected one of "
            f"{TRIES}: choose another with port=, or 0 for any",
        )
