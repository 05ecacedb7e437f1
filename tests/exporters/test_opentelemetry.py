"""OTLP over HTTP, as a real receiver sees it."""

from __future__ import annotations

import gzip
import math
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fresh_python import run_python
from mlflow_server import black_hole
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from otel_tap import Answering, is_missing, labels, tap
from patience import patience
from prometheus_servers import eventually
from spike_records import record
from spiking import dataset, train

from gradtrace import Spike, load_run
from gradtrace.exporters import OpenTelemetryExporter
from gradtrace.metrics.table import METRICS
from gradtrace.records import BatchRef, Cause, Record, RunInfo

real = pytest.mark.skipif(is_missing(), reason="oteltap is not installed")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "HEADERS", "CERTIFICATE", "COMPRESSION"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)


def info(name: str = "run", **fields: Any) -> RunInfo:
    return RunInfo(name=name, started=time.time(), **fields)


def spike(step: int, **fields: Any) -> Spike:
    known: dict[str, Any] = {
        "step": step,
        "time": time.time(),
        "severity": "warning",
        "message": "loss is high",
        "signal": "loss",
        "value": 9.0,
        "baseline": 1.0,
        "ratio": 9.0,
        "score": 2.0,
        "blamed": (BatchRef(0, 17, 17, (1, "a")),),
    }
    return Spike(**known | fields)


@real
def test_every_step_is_a_point_and_equal_to_the_run_log(tmp_path: Path) -> None:
    """After a real training each step has its values at its own time; spikes are log records."""
    with tap(tmp_path) as found:
        exporter = OpenTelemetryExporter(found.url)
        _, trace = train(dataset(3, 77, 200), tmp_path, run="mine", exporters=[exporter])
        assert trace.notes == [] and trace.path is not None and trace.spikes
        assert exporter.refused == 0
        eventually(lambda: 0.0 in found.by_time("gradtrace_run_active").values())
        run = load_run(trace.path)
        rows = run.steps.to_pylist()

        def same(name: str, column: str, **attributes: str) -> None:
            got = found.by_time(name, **attributes)
            assert list(got.values()) == [row[column] for row in rows]
            for told, row in zip(got, rows, strict=True):
                assert told == pytest.approx(row["time"], abs=1e-6)

        same("gradtrace_loss", "loss", run="mine", rank="0")
        same("gradtrace_grad_norm", "grad_norm")
        same("gradtrace_clip_coefficient", "clip_coefficient")
        norms = [r["norm"] for r in run.gradients.to_pylist() if r["layer"] == "0.weight"]
        assert list(found.by_time("gradtrace_layer_grad_norm", layer="0.weight").values()) == norms
        # Only where it was measured: no value is told twice.
        ratios = [r["ratio"] for r in run.updates.to_pylist() if r["layer"] == "0.weight"]
        got = found.by_time("gradtrace_layer_update_ratio", layer="0.weight")
        assert list(got.values()) == ratios and len(ratios) < 100
        totals = list(found.by_time("gradtrace_spikes_total", signal="loss").values())
        assert totals == sorted(totals) and totals[0] == 0 and totals[-1] > 0
        exemplars = [p["exemplars"] for p in found.points("gradtrace_spikes_total")]
        assert any(
            labels({"attributes": e["filteredAttributes"]})["step"] == str(trace.spikes[0].step)
            for told in exemplars
            for e in told
        )
        kinds = {
            m["name"]: "sum" in m and m["sum"] is not None for m in found.messages if "name" in m
        }
        nowhere = {"gradtrace_last_nonfinite_step", "gradtrace_last_nonfinite_batch_index"}
        assert kinds == {m.prometheus: m.counter for m in METRICS if m.prometheus not in nowhere}
        logs = [log for log in found.logs if labels(log)["gradtrace.kind"] == "spike"]
        told = [s for s in run.events if isinstance(s, Spike)]
        assert [log["body"]["stringValue"] for log in logs] == [s.message for s in told]
        assert labels(logs[0])["gradtrace.step"] == str(told[0].step)
        assert labels(logs[0])["gradtrace.run"] == "mine"
        assert logs[0]["severityText"] == "WARNING"


@real
def test_odd_names_and_values_arrive(tmp_path: Path) -> None:
    """Quotes, newlines, emoji, 500 characters, lone surrogates, NaN and Inf."""
    odd = 'a"b\n\\ \N{FIRE}' + "n" * 500
    with tap(tmp_path) as found:
        exporter = OpenTelemetryExporter(found.url)
        exporter.open(info(odd + "\ud800"))
        exporter.export([record(0, loss=math.nan, norm=math.inf), record(1)])
        causes = (Cause("batch", "\ud800", 0.5, {"odd": [math.inf, {"deep": odd}]}),)
        exporter.export([spike(1, message=odd + "\ud800", causes=causes, value=math.inf)])
        exporter.close()
        assert exporter.refused == 0
        eventually(lambda: found.logs and len(found.points("gradtrace_run_active")) == 3)
        [log] = found.logs
        assert log["body"]["stringValue"] == odd + "\\ud800"
        assert labels(found.points("gradtrace_loss")[0])["run"] == odd + "\\ud800"


def sent(answering: Answering) -> list[ExportMetricsServiceRequest]:
    return [
        ExportMetricsServiceRequest.FromString(body)
        for path, _, body in answering.requests
        if path == "/v1/metrics"
    ]


def steps_in(answering: Answering) -> list[float]:
    return [
        point.as_double
        for request in sent(answering)
        for metric in request.resource_metrics[0].scope_metrics[0].metrics
        if metric.name == "gradtrace_steps_total"
        for point in metric.sum.data_points
    ]


def test_a_failing_collector_gets_each_step_once() -> None:
    """What fails is sent again from where it failed; nothing is counted twice."""
    with Answering(503) as answering:
        exporter = OpenTelemetryExporter(answering.url)
        exporter.open(info())
        batch: list[Record] = [*(record(step) for step in range(70)), spike(69)]
        for _ in range(2):
            with pytest.raises(OSError, match="503"):
                exporter.export(batch)
        answering.requests.clear()
        answering.status = 200
        exporter.export(batch)
        exporter.export([record(70)])
        exporter.close()
        assert steps_in(answering) == [step + 1 for step in range(71)]
        assert sum(path == "/v1/logs" for path, _, _ in answering.requests) == 1
        last = sent(answering)[-2].resource_metrics[0].scope_metrics[0].metrics
        [spikes] = [m for m in last if m.name == "gradtrace_spikes_total"]
        assert [p.as_double for p in spikes.sum.data_points] == [1, 0]
    assert exporter.refused == 0


def test_what_is_refused_for_good_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A request that the collector calls wrong is not sent again, but counted, and told once."""
    partly = ExportMetricsServiceResponse(
        partial_success=ExportMetricsPartialSuccess(rejected_data_points=3, error_message="no room")
    )
    with Answering(400, b"bad") as answering:
        exporter = OpenTelemetryExporter(answering.url, logs=False)
        exporter.open(info())
        exporter.export([record(0)])
        whole = exporter.refused
        assert whole > 10
        answering.status, answering.body = 200, partly.SerializeToString()
        exporter.export([record(1)])
        assert exporter.refused == whole + 3
        assert len(answering.requests) == 2
    assert caplog.text.count("refused") == 1


@pytest.mark.parametrize("body", [b"{}", b"<html><body>welcome</body></html>"])
def test_a_success_is_one_whatever_it_says(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A 200 with JSON or HTML has taken the records: none is sent twice, and it is told once."""
    with Answering(200, body) as answering:
        exporter = OpenTelemetryExporter(answering.url)
        exporter.open(info())
        for step in range(3):
            exporter.export([record(step), spike(step)])
        exporter.close()
        assert steps_in(answering) == [1, 2, 3]
        assert len(answering.requests) == 7
    assert exporter.refused == 0
    assert caplog.text.count("not OTLP's") == 1


def test_a_success_that_breaks_off_is_one() -> None:
    """A 200 whose body never comes has taken the records."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def answer() -> None:
            held.append(listening.accept()[0])
            held[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        exporter = OpenTelemetryExporter(f"http://127.0.0.1:{port}", timeout=1.0)
        exporter.open(info())
        exporter.export([record(0)])
        thread.join(patience(10))
        held[0].close()
    assert exporter.refused == 0


def test_tokens_are_not_carried_elsewhere() -> None:
    """A redirect is an error: headers may hold a token."""
    with Answering(302) as answering:
        exporter = OpenTelemetryExporter(answering.url, headers={"Authorization": "Bearer x"})
        exporter.open(info())
        with pytest.raises(OSError, match="302"):
            exporter.export([record(0)])
        assert answering.requests[0][1]["Authorization"] == "Bearer x"
        assert len(answering.requests) == 1


def test_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, headers, compression, service name and resource attributes are OpenTelemetry's."""
    with Answering() as answering:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", answering.url + "/")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b,other=c")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=vision")
        exporter = OpenTelemetryExporter(headers={"other": "d"})
        exporter.open(info("mine"))
        exporter.export([record(0)])
        [(path, headers, body)] = answering.requests
    assert path == "/v1/metrics"
    assert {k.lower(): v for k, v in headers.items()}.items() >= {
        "x-key": "a b",
        "other": "d",
    }.items()
    request = ExportMetricsServiceRequest.FromString(gzip.decompress(body))
    resource = {
        a.key: a.value.string_value for a in request.resource_metrics[0].resource.attributes
    }
    assert resource["service.name"] == "gradtrace" and resource["team"] == "vision"
    assert resource["gradtrace.run"] == "mine"


def test_a_collector_that_never_answers_holds_up_nobody(tmp_path: Path) -> None:
    """With a black hole the loop takes its own time, leaving it no longer than asked."""
    with black_hole() as url:
        exporter = OpenTelemetryExporter(url, timeout=0.5)
        began = time.monotonic()
        _, trace = train(dataset(3), tmp_path, exporters=[exporter], close_timeout=1.0)
        assert time.monotonic() - began < patience(10)
        assert any("opentelemetry" in note.message for note in trace.notes)


def test_what_was_sent_before_is_counted() -> None:
    """`remember` brings counters up to date without sending."""
    with Answering() as answering:
        exporter = OpenTelemetryExporter(answering.url)
        exporter.open(info())
        exporter.remember([record(0), spike(0)])
        assert answering.requests == []
        exporter.export([record(1)])
        [request] = sent(answering)
    [spikes] = [
        metric
        for metric in request.resource_metrics[0].scope_metrics[0].metrics
        if metric.name == "gradtrace_spikes_total"
    ]
    assert [point.as_double for point in spikes.sum.data_points] == [1, 0]


def test_a_run_without_steps_sends_nothing() -> None:
    """A trace that ends before its first step asks no collector."""
    with Answering() as answering:
        exporter = OpenTelemetryExporter(answering.url)
        exporter.close()
        exporter.open(info())
        exporter.close()
        assert answering.requests == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"endpoint": "127.0.0.1:4318"}, ValueError, "endpoint is"),
        ({"endpoint": "ftp://x"}, ValueError, "such as http"),
        ({"endpoint": "http://x:99999"}, ValueError, "endpoint is"),
        ({"endpoint": 4318}, TypeError, "endpoint is 4318"),
        ({"endpoint": "http://me:secret@127.0.0.1:4318"}, ValueError, "user or a pass.*headers="),
        ({"endpoint": "https://secret@x"}, ValueError, "endpoint holds .*headers="),
        ({"endpoint": "ftp://me:secret@x"}, ValueError, "endpoint holds .*headers="),
        ({"endpoint": "me:secret@x:4318"}, ValueError, "endpoint holds .*headers="),
        ({"endpoint": "http://me:secret@x:99999"}, ValueError, "endpoint holds .*headers="),
        ({"endpoint": "http://me:sec/secret@x:4318"}, ValueError, "endpoint is wrong"),
        ({"headers": ["secret"]}, TypeError, "headers"),
        ({"headers": {"a": "secret\r\nb: c"}}, TypeError, "headers"),
        ({"layers": -1}, ValueError, "layers is -1"),
        ({"max_series": 0}, ValueError, "max_series is 0"),
        ({"logs": 1}, TypeError, "logs is 1"),
        ({"timeout": 0}, ValueError, "more than 0"),
        ({"timeout": "5"}, TypeError, "seconds"),
    ],
)
def test_settings_are_checked_where_they_are_given(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """The constructor refuses what is wrong, by its name, and repeats no secret."""
    with pytest.raises(error, match=words) as caught:
        OpenTelemetryExporter(**options)
    assert "secret" not in str(caught.value)


def test_a_password_in_the_environments_endpoint_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OTEL_EXPORTER_OTLP_ENDPOINT with a password is refused by that name, without repeating it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:secret@127.0.0.1:4318")
    with pytest.raises(ValueError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT holds.*_HEADERS") as caught:
        OpenTelemetryExporter()
    assert "secret" not in str(caught.value)


def test_the_package_is_loaded_by_the_constructor_only() -> None:
    """Importing the module loads no opentelemetry; the global providers are never set."""
    code = (
        "import sys\n"
        "from gradtrace.exporters.opentelemetry import OpenTelemetryExporter\n"
        "assert 'opentelemetry' not in sys.modules\n"
        "OpenTelemetryExporter()\n"
        "assert 'opentelemetry.metrics._internal' not in sys.modules or (\n"
        "    sys.modules['opentelemetry.metrics._internal']._METER_PROVIDER is None)\n"
        "for name in [n for n in sys.modules if n.startswith('opentelemetry.proto')]:\n"
        "    sys.modules[name] = None\n"
        "try: OpenTelemetryExporter()\n"
        "except ImportError as error: print(error)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert 'pip install "gradtrace[opentelemetry]"' in done.stdout
