"""Pushes to a Prometheus Pushgateway, for jobs that end before anybody scrapes them."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("gradtrace")

EVERY = 15.0
TIMEOUT = 5.0


def check_gateway(gateway: str) -> None:
    """Raises ValueError for an address with user or password, which is not repeated."""
    if "@" in gateway:
        raise ValueError(
            "pushgateway holds a user or a password; expected its address, such as "
            "127.0.0.1:9091, without them: give them as push_auth=(user, password)"
        )


class Pusher:
    """Pushes what `page` gives each `every` seconds, in a daemon thread; takes it back at the end.

    `client` is the package `prometheus_client`, which knows the gateway's addresses. A push that
    fails is logged, once until one succeeds; the next one brings all that is missing.
    """

    def __init__(
        self,
        client: Any,
        page: Callable[[], bytes],
        *,
        gateway: str,
        job: str,
        labels: dict[str, str],
        auth: tuple[str, str] | None = None,
        every: float = EVERY,
    ) -> None:
        self._client = client
        self._page = page
        self._gateway = gateway
        self._job = job
        self._labels = labels
        self._auth = auth
        self._every = every
        self._failing = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gradtrace-push", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes the run back from the gateway; at most about 2 `TIMEOUT`s."""
        self._end.set()
        self._thread.join(2 * TIMEOUT)

    def _run(self) -> None:
        while not self._end.is_set():
            self._try(self._push)
            self._end.wait(self._every)
        self._try(self._delete)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            if not self._failing:
                self._failing = True
                logger.warning(
                    "exporter prometheus cannot reach the Pushgateway, and goes on trying: %s: %s",
                    type(error).__name__,
                    error,
                )
        else:
            self._failing = False

    def _push(self) -> None:
        self._client.push_to_gateway(
            self._gateway,
            self._job,
            # Our own page goes out, not what the library would make of a registry.
            self._client.CollectorRegistry(),
            grouping_key=self._labels,
            timeout=TIMEOUT,
            handler=self._handler,
        )

    def _delete(self) -> None:
        self._client.delete_from_gateway(
            self._gateway,
            self._job,
            grouping_key=self._labels,
            timeout=TIMEOUT,
            handler=self._handler,
        )

    def _handler(
        self,
        url: str,
        method: str,
        timeout: float | None,
        headers: list[tuple[str, str]],
        data: bytes,
    ) -> Callable[[], None]:
        url = self._without_dots(url)
        body = self._page() if method == "PUT" else data
        exposition = self._client.exposition
        if self._auth is None:
            made = exposition.default_handler(url, method, timeout, headers, body)
        else:
            made = exposition.basic_auth_handler(url, method, timeout, headers, body, *self._auth)
        call: Callable[[], None] = made
        return call

    def _without_dots(self, url: str) -> str:
        """The same address, as the gateway takes it where a value is "." or "..".

        It reads these as folders and sends the client elsewhere.
        """
        parts = url.split("/")
        # The address ends with names and values: those of the job and of each label.
        for at in range(len(parts) - 2 * len(self._labels) - 1, len(parts), 2):
            if parts[at] in (".", ".."):
                parts[at - 1] += "@base64"
                parts[at] = base64.urlsafe_b64encode(parts[at].encode()).decode()
        return "/".join(parts)
