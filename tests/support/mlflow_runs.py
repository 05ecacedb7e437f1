"""What MLflow holds of a run, against what the run log has; and what `gradtrace send` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from patience import patience
from run_values import values_of

from gradtrace import load_run
from gradtrace.exporters.mlflow import MLflowExporter
from gradtrace.pipeline.send import Delivered, deliver
from gradtrace.records import RunInfo
from gradtrace.runlog.backlog import Backlog

COUNTS = {"spikes", "nonfinite_steps", "spike_score", "overhead_seconds", "dropped_records"}


SUMMARY = {"clip", "spike_share", "overhead_ratio", "suggested_clip_norm", "loss"} | {
    f"grad_norm_p{percentile}" for percentile in (50, 95, 99)
}


def history(client: Any, run_id: str | None, key: str) -> dict[int, float]:
    """Values by step; fails when a step is there twice."""
    found = client.get_metric_history(run_id, key)
    values = {metric.step: metric.value for metric in found}
    assert len(values) == len(found), f"{key} has steps twice"
    return values


def assert_complete(client: Any, run_id: str | None, path: Path) -> None:
    """Every step's values are there as the run log has them; no key has a step twice."""
    wanted = values_of(path)
    assert wanted["loss"]
    found = {key: history(client, run_id, key) for key in client.get_run(run_id).data.metrics}
    for key, series in wanted.items():
        values = found.pop(f"gradtrace/{key}")
        values.pop(max(wanted["loss"]) + 1, None)  # the summary
        assert values == pytest.approx(series, rel=1e-12), key
    # The rest is counts of events, shares of zeros in groups, and the summary.
    rest = {key.split("/")[1] for key in found if key.startswith("gradtrace/")}
    assert rest <= {"layers", *COUNTS, *SUMMARY}


def send(path: Path, exporter: MLflowExporter, *, again: bool = False) -> Delivered:
    """What `gradtrace send` does."""
    return deliver(Backlog(path), info_of(path), exporter, again=again)


def info_of(path: Path) -> RunInfo:
    """What a later process knows of the run."""
    names = {field.name for field in dataclasses.fields(RunInfo)}
    known = {key: value for key, value in load_run(path).info.items() if key in names}
    return RunInfo(**known | {"path": path})


def patient(uri: str, **options: Any) -> MLflowExporter:
    """An exporter that waits for a server that a loaded machine makes slow."""
    return MLflowExporter(uri, timeout=patience(30), **options)
