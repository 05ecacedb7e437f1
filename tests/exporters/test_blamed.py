"""Whom exporters name for a spike: the batches that `Spike.blamed` holds responsible, no others."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from build import healthy, run_info
from fresh_runs import fresh_run
from otel_tap import Answering
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from rich_records import two_loader_spike
from scrapes import OPENMETRICS, fetch, opened, parsed

from gradtrace.exporters import (
    ConsoleExporter,
    OpenMetricsExporter,
    OpenTelemetryExporter,
    TensorBoardExporter,
)
from gradtrace.exporters.wandb.texts import COLUMNS, alert_text, spike_row
from gradtrace.records import Record, Spike

INDEX = "gradtrace_last_spike_batch_index"

OTHERS = ("500", "700", "499", "good", "earlier")
"""What stands for batches of the step, or of the one before, that are not blamed."""


def records(*, blamed: bool = True) -> list[Record]:
    """A spike that a batch is blamed for, and one with the same batches that is said here."""
    earlier = two_loader_spike(0)
    return [healthy(0), earlier, healthy(1), two_loader_spike(1, blamed=blamed), healthy(2)]


def samples_of(families: Any) -> dict[str, Any]:
    """The newest sample of each series of the loss, by name."""
    return {
        sample.name: sample
        for family in families
        for sample in family.samples
        if sample.labels.get("signal", "loss") == "loss"
    }


@pytest.mark.parametrize(("blamed", "index"), [(True, 501), (False, -1)])
def test_prometheus_shows_the_first_blamed(blamed: bool, index: int) -> None:
    """As the last spike's batch and in the exemplar; without one no older index is kept."""
    with opened() as exporter:
        exporter.export(records(blamed=blamed))
        samples = samples_of(parsed(fetch(exporter, OPENMETRICS), OPENMETRICS))
    assert samples[INDEX].value == index
    assert samples["gradtrace_last_spike_step"].value == 1
    expected = {"step": "1"} | ({"batch_index": "501"} if blamed else {})
    assert samples["gradtrace_spikes_total"].exemplar.labels == expected


@pytest.mark.parametrize(("blamed", "index"), [(True, 501), (False, -1)])
def test_openmetrics_has_the_first_blamed_at_its_step(
    tmp_path: Path, blamed: bool, index: int
) -> None:
    """Each step has the batch of the last spike that was there by then."""
    exporter = OpenMetricsExporter(tmp_path / "f")
    exporter.open(run_info())
    exporter.export(records(blamed=blamed))
    exporter.close()
    parse: Any = text_string_to_metric_families
    [found] = [f for f in parse((tmp_path / "f").read_text()) if f.name == INDEX]
    assert [sample.value for sample in found.samples] == [501, index, index]


@pytest.mark.parametrize("blamed", [True, False])
def test_opentelemetry_names_the_blamed(blamed: bool) -> None:
    """In points and exemplars the first of them, in the event's record all of them."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

    with Answering() as answering:
        exporter = OpenTelemetryExporter(answering.url)
        exporter.open(fresh_run())
        exporter.export(records(blamed=blamed))
        bodies = [(path, body) for path, _, body in answering.requests]
    [metrics] = [b for path, b in bodies if path == "/v1/metrics"]
    [logs] = [b for path, b in bodies if path == "/v1/logs"]
    request = ExportMetricsServiceRequest.FromString(metrics)
    found = {m.name: m for m in request.resource_metrics[0].scope_metrics[0].metrics}
    # An event counts from the next step on.
    points = [p.as_double for p in found[INDEX].gauge.data_points]
    assert points == [501, 501 if blamed else -1]
    [exemplar] = list(found["gradtrace_spikes_total"].sum.data_points)[-2].exemplars
    told = {a.key: a.value.string_value for a in exemplar.filtered_attributes}
    assert told == {"step": "1"} | ({"batch_index": "501"} if blamed else {})

    records_of = ExportLogsServiceRequest.FromString(logs).resource_logs[0].scope_logs[0]
    attributes = {a.key: a.value for a in records_of.log_records[-1].attributes}
    named = [
        entry.value.int_value
        for ref in attributes["gradtrace.blamed"].array_value.values
        for entry in ref.kvlist_value.values
        if entry.key == "batch_index"
    ]
    assert named == ([501, 701] if blamed else [])


def test_wandb_names_all_blamed() -> None:
    """The table has them with their samples; the alert says what the message and the cause say."""
    row = dict(zip(COLUMNS, spike_row(two_loader_spike(1)), strict=True))
    assert row["batch"] == "epoch 3 batch 501, epoch 3 batch 701"
    assert row["sample ids"] == "bad, 4, 5, 77"
    assert row["likely cause"] == "it rose"
    nobody = dict(zip(COLUMNS, spike_row(two_loader_spike(1, blamed=False)), strict=True))
    assert (nobody["batch"], nobody["sample ids"]) == ("", "")
    text = alert_text(two_loader_spike(1), "mine")
    assert text == "Step 1 of mine: loss 9 is 9 times its baseline\nLikely: it rose"


@pytest.mark.parametrize("blamed", [True, False])
def test_tensorboard_names_the_blamed_samples(tmp_path: Path, blamed: bool) -> None:
    """Below the spike's message stand the samples of the blamed batches, none where none is."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    exporter = TensorBoardExporter(str(tmp_path))
    exporter.open(run_info())
    exporter.export(records(blamed=blamed))
    exporter.close()
    board: Any = EventAccumulator(str(tmp_path))
    board.Reload()
    [_, told] = board.Tensors("gradtrace/events/spike")
    text = told.tensor_proto.string_val[0].decode()
    assert "loss 9 is 9 times" in text
    assert ("samples" in text) == blamed and not named_of(text, OTHERS)
    if blamed:
        assert text.endswith('samples: ["bad", 4, 5, 77]')


def test_the_console_adds_no_batch_of_its_own() -> None:
    """It writes the event's message, which the detector has put the blamed batches into."""
    stream = io.StringIO()
    exporter = ConsoleExporter(stream=stream)
    exporter.open(run_info())
    exporter.export(records())
    exporter.close()
    assert "step 1: loss 9 is 9 times its baseline\n" in stream.getvalue()
    assert not named_of(stream.getvalue(), (*OTHERS, "501", "701"))


def test_mlflow_tells_how_many_and_no_batch() -> None:
    """Its tags count spikes; nothing it gets names a batch."""
    from gradtrace.metrics.step_values import StepValues

    values = StepValues(run_info())
    keys = {key for one in records() for key in values.update(one) or {}}
    assert "gradtrace/spikes" in keys and not [key for key in keys if "batch" in key]


def named_of(text: str, words: tuple[str, ...]) -> list[str]:
    """The words that stand in a text for themselves."""
    return [word for word in words if re.search(rf"\b{word}\b", text)]


def test_the_likely_cause_is_the_first_that_could_be_judged() -> None:
    """One that there was too little data for is none; without any there is none."""
    spike = two_loader_spike(1)
    assert spike.likely is not None and spike.likely.message == "it rose"
    bare = Spike(
        **{name: getattr(spike, name) for name in ("step", "time", "severity", "message")},
        signal="loss",
        value=9.0,
        baseline=1.0,
        ratio=9.0,
        score=2.0,
    )
    assert bare.likely is None
