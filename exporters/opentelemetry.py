"""The run as OpenTelemetry metrics and log records, over OTLP/HTTP."""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from gradtrace.exporters._checks import check_max_series, check_seconds, needed
from gradtrace.exporters._otlp import Collector, Encoder, RefusedError
from gradtrace.exporters._retry import is_same
from gradtrace.metrics.layers import Layers, check_layers
from gradtrace.metrics.samples import Family, RunSamples
from gradtrace.records import Event, Record, RunInfo, StepRecord

logger = logging.getLogger("gradtrace")

ENDPOINT = "http://127.0.0.1:4318"
STEPS_A_REQUEST = 32
PROTO = "opentelemetry.proto"


class OpenTelemetryExporter:
    """Sends each step's values as points with the step's time, and events as log records.

    The names are those of Prometheus, with the same labels as attributes; counters are cumulative
    and carry exemplars. `endpoint` is the collector's address without `/v1/metrics`; if None,
    OTEL_EXPORTER_OTLP_ENDPOINT, then http://127.0.0.1:4318. `headers` are added to those of
    OTEL_EXPORTER_OTLP_HEADERS. OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_EXPORTER_OTLP_COMPRESSION,
    OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES count as everywhere. `layers`: how many layers
    beside the groups, or globs over their names; at most `max_series` series in all. `logs=False`
    sends no events.

    Neither OpenTelemetry's global providers nor its SDK's exporters are used: theirs tell the
    newest value each minute. A request takes at most about `timeout` seconds. What a collector
    refuses for good is counted in `refused`; all else is tried again. A 2xx is success, whatever
    the answer says.

    Raises ImportError where the packages are not installed, TypeError or ValueError for wrong
    settings, and OSError for a certificate that cannot be read.
    """

    name = "opentelemetry"

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        layers: Layers = 20,
        max_series: int = 1000,
        logs: bool = True,
        timeout: float = 5.0,
    ) -> None:
        check_max_series(max_series)
        if not isinstance(logs, bool):
            raise TypeError(f"logs is {logs!r}; expected True or False")
        timeout = check_seconds("timeout", timeout, "more than 0, such as 5", above=True)
        self._metrics_pb, self._logs_pb, self._common_pb, resources, util = needed(
            f"{PROTO}.collector.metrics.v1.metrics_service_pb2",
            f"{PROTO}.collector.logs.v1.logs_service_pb2",
            f"{PROTO}.common.v1.common_pb2",
            "opentelemetry.sdk.resources",
            "opentelemetry.util.re",
            by="OpenTelemetryExporter",
            extra="opentelemetry",
        )
        self._base = base = _checked_endpoint(endpoint)
        given = util.parse_env_headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""), True)
        certificate = os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE")
        tls = ssl.create_default_context(cafile=certificate) if certificate else None
        self._resource = dict(resources.Resource.create().attributes)
        if "OTEL_SERVICE_NAME" not in os.environ and str(
            self._resource.get("service.name", "")
        ).startswith("unknown_service"):
            self._resource["service.name"] = "gradtrace"
        self._layers = check_layers(layers)
        self._max_series = max_series
        self._logs = logs
        self._collectors = {
            kind: Collector(
                f"{base}/v1/{kind}",
                headers={**given, **_checked_headers(headers)},
                timeout=timeout,
                tls=tls,
                compressed=os.environ.get("OTEL_EXPORTER_OTLP_COMPRESSION") == "gzip",
            )
            for kind in ("metrics", "logs")
        }
        self._dropped: Callable[[], Mapping[str, int]] = dict
        self._refused = 0
        self._told: set[str] = set()

    @property
    def refused(self) -> int:
        """How many points and log records the collector did not take, for good. Any thread."""
        return self._refused

    def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
        """The collector, for `gradtrace send`."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self._base}, ()

    def open(self, run: RunInfo) -> None:
        """Prepares; asks nobody."""
        self._run = run
        self._samples = RunSamples(
            run, layers=self._layers, max_series=self._max_series, keep=False
        )
        resource = self._resource | {
            "gradtrace.run": run.name,
            "gradtrace.version": run.versions.get("gradtrace", "unknown"),
        }
        self._encoder = Encoder(
            self._metrics_pb,
            self._logs_pb,
            self._common_pb,
            resource,
            started=run.started,
            most=4 * self._max_series,
        )
        self._batch: list[Record] = []
        self._requests: deque[tuple[str, int, bytes]] = deque()
        self._last: StepRecord | None = None

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """Tells what all exporters of the trace have lost."""
        self._dropped = dropped

    def export(self, records: Sequence[Record]) -> None:
        """Sends the records. Raises OSError when the collector does not take them.

        Called again with the same records it goes on behind the last request that was taken.
        """
        if not is_same(self._batch, records):
            self._batch = list(records)
            self._encode(records)
        while self._requests:
            self._send(*self._requests[0])
            self._requests.popleft()
        self._batch = []

    def remember(self, records: Sequence[Record]) -> None:
        """Counts what an earlier process has sent."""
        for record in records:
            self._samples.update(record)

    def close(self) -> None:
        """Says that the run is not active any more, unless records are left that were not taken."""
        last = getattr(self, "_last", None)
        if last is None or self._requests:
            return
        self._last = None
        families = self._samples.families(dropped=self._dropped(), active=False)
        [active] = [f for f in families if f[0].prometheus == "gradtrace_run_active"]
        try:
            self._send("metrics", 1, self._encoder.metrics([(last.time, [active])]))
        except OSError as error:
            logger.warning(
                "exporter opentelemetry could not send the end of run %s: %s", self._run.name, error
            )

    def _encode(self, records: Sequence[Record]) -> None:
        steps: list[tuple[float, Sequence[Family]]] = []
        events = [record for record in records if isinstance(record, Event)]
        for record in records:
            self._samples.update(record)
            if isinstance(record, StepRecord):
                self._last = record
                steps.append((record.time, self._samples.families(dropped=self._dropped())))
            if len(steps) == STEPS_A_REQUEST or (steps and record is records[-1]):
                points = sum(len(samples) for _, families in steps for _, samples in families)
                self._requests.append(("metrics", points, self._encoder.metrics(steps)))
                steps = []
        if events and self._logs:
            own = {"run": self._run.name, "rank": str(self._run.rank)}
            self._requests.append(("logs", len(events), self._encoder.logs(events, own)))

    def _send(self, kind: str, count: int, data: bytes) -> None:
        try:
            answer = self._collectors[kind].post(data)
        except RefusedError as error:
            refused, reason = count, str(error)
        else:
            try:
                refused, reason = self._encoder.refused(kind, answer)
            except Exception:  # sent again it would be there twice, and so for ever
                refused, reason = 0, ""
                self._tell(
                    "unreadable",
                    f"the collector took {kind} with an answer that is not OTLP's, such as a proxy "
                    f"gives: {answer[:80]!r}",
                )
        if refused:
            self._refused += refused
            self._tell("refused", f"{refused} {kind} refused: {reason}")

    def _tell(self, trouble: str, text: str) -> None:
        """Warns, of the same trouble once."""
        if trouble not in self._told:
            self._told.add(trouble)
            logger.warning("exporter opentelemetry: %s", text)


def _checked_endpoint(endpoint: object) -> str:
    given = "endpoint" if endpoint is not None else "OTEL_EXPORTER_OTLP_ENDPOINT"
    value = endpoint
    if value is None:
        value = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ENDPOINT
    expected = f"expected a collector's address such as {ENDPOINT}"
    if re.search(r"(^|://)[^/?#]*@", str(value)):
        # Not repeated: it holds a password.
        raise ValueError(
            f"{given} holds a user or a password; {expected}, without them: send them with "
            'headers={"Authorization": "Basic ..."} or OTEL_EXPORTER_OTLP_HEADERS'
        )
    if not isinstance(value, str):
        raise TypeError(f"{given} is {value!r}; {expected}")
    try:
        parts = urlsplit(value)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right or any(c.isspace() for c in value):
        # What comes before an @ may be a password with a slash.
        got = repr(value) if "@" not in value else "wrong, and has an @"
        raise ValueError(f"{given} is {got}; {expected}")
    return value.rstrip("/").removesuffix("/v1/metrics").rstrip("/")


def _checked_headers(headers: object) -> dict[str, str]:
    # Values are not repeated: they are tokens.
    if headers is None:
        return {}
    if not isinstance(headers, Mapping) or not all(
        isinstance(part, str) and part.isprintable() for item in headers.items() for part in item
    ):
        raise TypeError("headers is no mapping of texts to texts; expected HTTP headers")
    return dict(headers)
