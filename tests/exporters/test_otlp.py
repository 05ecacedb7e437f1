"""Samples and events as OTLP messages, and their way to a collector."""

from __future__ import annotations

import gzip
import math
from typing import Any

import pytest
from build import batch, note, spike
from otel_tap import Answering

from gradtrace.exporters._otlp import MOST_ITEMS, MOST_TEXT, Collector, Encoder, RefusedError
from gradtrace.metrics.samples import Exemplar, Family, Labels
from gradtrace.metrics.table import METRICS

PROTO = "opentelemetry.proto"
METRICS_PB = pytest.importorskip(f"{PROTO}.collector.metrics.v1.metrics_service_pb2")
LOGS_PB = pytest.importorskip(f"{PROTO}.collector.logs.v1.logs_service_pb2")
COMMON_PB = pytest.importorskip(f"{PROTO}.common.v1.common_pb2")


def encoder(**resource: Any) -> Encoder:
    return Encoder(METRICS_PB, LOGS_PB, COMMON_PB, resource, started=5.0, most=8)


def plain(value: Any) -> Any:
    """An attribute's value as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(inner) for inner in value.array_value.values]
    if kind == "kvlist_value":
        return {entry.key: plain(entry.value) for entry in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


def test_points_have_their_own_times() -> None:
    """A metric of several steps is one, with a point a step; counters begin with the run."""
    by_name = {metric.prometheus: metric for metric in METRICS}
    labels = Labels([("run", "a\ud800")])
    exemplar = Exemplar(Labels([("step", "1")]), 1.0, 6.5)
    steps: list[tuple[float, list[Family]]] = [
        (
            6.0 + at,
            [
                (by_name["gradtrace_loss"], [(labels, 2.0 + at, None)]),
                (by_name["gradtrace_skipped_steps_total"], [(labels, at, exemplar)]),
            ],
        )
        for at in range(2)
    ]
    data = encoder(service="mine").metrics(steps)
    [found] = METRICS_PB.ExportMetricsServiceRequest.FromString(data).resource_metrics
    assert [(a.key, plain(a.value)) for a in found.resource.attributes] == [("service", "mine")]
    loss, skipped = found.scope_metrics[0].metrics
    assert [(p.time_unix_nano, p.as_double) for p in loss.gauge.data_points] == [
        (6_000_000_000, 2.0),
        (7_000_000_000, 3.0),
    ]
    assert skipped.sum.is_monotonic and skipped.sum.aggregation_temporality == 2
    point = skipped.sum.data_points[1]
    assert point.start_time_unix_nano == 5_000_000_000
    assert [(a.key, plain(a.value)) for a in point.attributes] == [("run", "a\\ud800")]
    [told] = point.exemplars
    assert told.time_unix_nano == 6_500_000_000
    assert [(a.key, plain(a.value)) for a in told.filtered_attributes] == [("step", "1")]


def test_events_are_log_records_with_all_their_fields() -> None:
    """Fields of any depth are attributes; what is empty or said elsewhere is left out."""
    event = spike(4, time=math.nan, batches=(batch(2, ("x", 3)),), value=math.inf)
    data = encoder().logs([event, note(5)], {"run": "mine"})
    [scope] = LOGS_PB.ExportLogsServiceRequest.FromString(data).resource_logs[0].scope_logs
    one, two = scope.log_records
    assert (one.severity_number, one.severity_text, one.time_unix_nano) == (13, "WARNING", 0)
    assert one.body.string_value == event.message
    fields = {a.key: plain(a.value) for a in one.attributes}
    assert fields["gradtrace.run"] == "mine" and fields["gradtrace.kind"] == "spike"
    assert fields["gradtrace.step"] == 4 and fields["gradtrace.value"] == math.inf
    [ref] = fields["gradtrace.batches"]
    assert ref == {"epoch": 0, "batch_index": 2, "ordinal": 2, "sample_ids": ["x", 3]}
    assert not {"gradtrace.message", "gradtrace.time", "gradtrace.clip"} & fields.keys()
    assert {a.key: plain(a.value) for a in two.attributes}["gradtrace.source"] == "test"


def test_long_fields_are_cut() -> None:
    """Lists and texts of any length become bounded ones."""
    event = spike(0, suspicion="x" * 9000, lr=tuple(float(k) for k in range(5000)))
    data = encoder().logs([event], {})
    [scope] = LOGS_PB.ExportLogsServiceRequest.FromString(data).resource_logs[0].scope_logs
    fields = {a.key: plain(a.value) for a in scope.log_records[0].attributes}
    assert len(fields["gradtrace.suspicion"]) == MOST_TEXT
    assert len(fields["gradtrace.lr"]) == MOST_ITEMS


def test_answers_tell_what_was_refused() -> None:
    """By kind; what is no answer of OTLP's is an error."""
    partly = METRICS_PB.ExportMetricsPartialSuccess(rejected_data_points=3, error_message="no")
    answer = METRICS_PB.ExportMetricsServiceResponse(partial_success=partly).SerializeToString()
    assert encoder().refused("metrics", answer) == (3, "no")
    assert encoder().refused("logs", b"") == (0, "")
    with pytest.raises(Exception, match="pars"):
        encoder().refused("metrics", b"<html>")


@pytest.mark.parametrize("compressed", [False, True])
def test_requests_are_posted(compressed: bool) -> None:
    """With the caller's headers, and compressed where that is asked for."""
    with Answering(200, b"taken") as answering:
        collector = Collector(
            f"{answering.url}/v1/logs", headers={"K": "v"}, timeout=30, compressed=compressed
        )
        assert collector.post(b"data") == b"taken"
    [(path, headers, body)] = answering.requests
    assert path == "/v1/logs" and headers["K"] == "v"
    assert (gzip.decompress(body) if compressed else body) == b"data"


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, RefusedError), (413, RefusedError), (422, RefusedError), (302, ConnectionError)]
    + [(status, ConnectionError) for status in (401, 404, 429, 500, 503)],
)
def test_errors_say_whether_trying_again_helps(status: int, error: type[Exception]) -> None:
    """A wrong request is refused for good; everything else may pass."""
    with Answering(status, b"because") as answering:
        collector = Collector(answering.url, headers={}, timeout=30)
        with pytest.raises(error, match=f"answers {status} .*: because"):
            collector.post(b"data")
