"""Samples and events as OTLP messages, and their way to a collector over HTTP.

The messages are built without OpenTelemetry's SDK, whose instruments keep the newest value between
two collections and fold what has many attributes into one: here each step is a point of its own,
and takes a quarter of the time.
"""

from __future__ import annotations

import gzip
import http.client
import math
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradtrace.exporters._keys import spelt
from gradtrace.metrics.samples import Exemplar, Family, Forms, Labels
from gradtrace.metrics.table import Metric
from gradtrace.records import Event, event_to_dict

SEVERITIES = {"info": 9, "warning": 13, "error": 17}
CUMULATIVE = 2
MOST_ITEMS = 1000
MOST_TEXT = 4000
MOST_ANSWER = 1 << 20


class Encoder:
    """Makes messages with the modules of `opentelemetry.proto`. One thread.

    The attributes of at most `most` series are kept.
    """

    def __init__(
        self, metrics: Any, logs: Any, common: Any, resource: Any, *, started: float, most: int
    ) -> None:
        self._metrics = metrics
        self._logs = logs
        self._common = common
        self._resource = resource
        self._started = _nanoseconds(started)
        self._attributes: Forms[list[Any]] = Forms(self._labelled, most=most)

    def metrics(self, steps: Sequence[tuple[float, Sequence[Family]]]) -> bytes:
        """A request with the samples of some steps, each with its unix time."""
        request = self._metrics.ExportMetricsServiceRequest()
        scope = self._scope(request.resource_metrics).scope_metrics.add()
        scope.scope.name = "gradtrace"
        made: dict[str, Any] = {}
        for time, families in steps:
            when = _nanoseconds(time)
            for metric, samples in families:
                points = made.get(metric.prometheus)
                if points is None:
                    points = made[metric.prometheus] = self._new(scope.metrics.add(), metric)
                for labels, value, exemplar in samples:
                    point = points.add(time_unix_nano=when, as_double=value)
                    point.attributes.extend(self._attributes[labels])
                    if metric.counter:
                        point.start_time_unix_nano = min(when, self._started)
                    if exemplar is not None:
                        self._add_exemplar(point, exemplar)
        data: bytes = request.SerializeToString()
        return data

    def logs(self, events: Iterable[Event], attributes: Mapping[str, str]) -> bytes:
        """A request with events as log records; `attributes` stand on each."""
        request = self._logs.ExportLogsServiceRequest()
        scope = self._scope(request.resource_logs).scope_logs.add()
        scope.scope.name = "gradtrace"
        for event in events:
            when = _nanoseconds(event.time)
            made = scope.log_records.add(time_unix_nano=when, observed_time_unix_nano=when)
            made.severity_number = SEVERITIES[event.severity]
            made.severity_text = event.severity.upper()
            made.body.string_value = spelt(event.message)
            if "event_name" in made.DESCRIPTOR.fields_by_name:
                made.event_name = f"gradtrace.{event.kind}"
            fields = {key: v for key, v in event_to_dict(event).items() if v is not None}
            for key in ("time", "message", "severity", "rank"):
                del fields[key]
            for key, value in {**attributes, **fields}.items():
                attribute = made.attributes.add(key=f"gradtrace.{key}")
                self._put(attribute.value, value)
        data: bytes = request.SerializeToString()
        return data

    def refused(self, kind: str, answer: bytes) -> tuple[int, str]:
        """How many points or records a collector did not take, and why.

        Raises DecodeError, of protobuf, for an answer that is none of OTLP's.
        """
        if kind == "metrics":
            said = self._metrics.ExportMetricsServiceResponse.FromString(answer).partial_success
            return int(said.rejected_data_points), str(said.error_message)
        said = self._logs.ExportLogsServiceResponse.FromString(answer).partial_success
        return int(said.rejected_log_records), str(said.error_message)

    def _scope(self, resources: Any) -> Any:
        made = resources.add()
        for key, value in self._resource.items():
            self._put(made.resource.attributes.add(key=spelt(key)).value, value)
        return made

    def _new(self, made: Any, metric: Metric) -> Any:
        made.name = metric.prometheus
        made.description = metric.meaning
        made.unit = {"s": "s", "ratio": "1", "count": "1"}.get(metric.unit, "")
        if not metric.counter:
            return made.gauge.data_points
        made.sum.is_monotonic = True
        made.sum.aggregation_temporality = CUMULATIVE
        return made.sum.data_points

    def _labelled(self, labels: Labels) -> list[Any]:
        return [
            self._common.KeyValue(key=k, value=self._common.AnyValue(string_value=spelt(v)))
            for k, v in labels.pairs
        ]

    def _add_exemplar(self, point: Any, exemplar: Exemplar) -> None:
        when = _nanoseconds(exemplar.time)
        made = point.exemplars.add(time_unix_nano=when, as_double=exemplar.value)
        made.filtered_attributes.extend(self._labelled(exemplar.labels))

    def _put(self, into: Any, value: Any, depth: int = 8) -> None:
        """A value of any kind that an event has; long lists and texts are cut."""
        if isinstance(value, bool):
            into.bool_value = value
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            into.int_value = value
        elif isinstance(value, float):
            into.double_value = value
        elif isinstance(value, Mapping) and depth:
            into.kvlist_value.SetInParent()
            for key, inner in list(value.items())[:MOST_ITEMS]:
                made = into.kvlist_value.values.add(key=spelt(str(key)))
                self._put(made.value, inner, depth - 1)
        elif isinstance(value, (list, tuple)) and depth:
            into.array_value.SetInParent()
            for inner in value[:MOST_ITEMS]:
                self._put(into.array_value.values.add(), inner, depth - 1)
        elif value is not None:
            into.string_value = spelt(str(value)[:MOST_TEXT])


class RefusedError(Exception):
    """The collector says that a request is wrong: sent again, it would be refused again."""


class Collector:
    """Posts requests to one URL. Follows no redirects, for headers hold tokens."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: float,
        tls: ssl.SSLContext | None = None,
        compressed: bool = False,
    ) -> None:
        self._url = url
        self._compressed = compressed
        self._timeout = timeout
        self._headers = dict(headers) | {
            "Content-Type": "application/x-protobuf",
            "User-Agent": "gradtrace",
        }
        if compressed:
            self._headers["Content-Encoding"] = "gzip"
        self._opener = urllib.request.build_opener(
            _Stay, *([] if tls is None else [urllib.request.HTTPSHandler(context=tls)])
        )

    def post(self, data: bytes) -> bytes:
        """The answer; empty where it breaks off after a status of success.

        Raises RefusedError for a wrong request, OSError for all that may pass.
        """
        body = gzip.compress(data, compresslevel=1) if self._compressed else data
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                try:
                    got: bytes = answer.read(MOST_ANSWER)
                except (OSError, http.client.HTTPException):
                    return b""  # it was taken: sent again, it would be there twice
                return got
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(300).decode("utf-8", "replace")
            text = f"{self._url} answers {error.code} {error.reason}: {said}".rstrip(": ")
            if error.code in (400, 413, 422):
                raise RefusedError(text) from None
            raise ConnectionError(text) from None


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _nanoseconds(time: float) -> int:
    return max(0, round(time * 1e9)) if math.isfinite(time) else 0
