"""Where a run goes: MLflow's active run, one named by its id, or one of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from build import healthy
from fresh_runs import fresh_run
from mlflow_runs import assert_complete, history, patient, send
from mlflow_server import MlflowServer
from spiking import dataset, train

from gradtrace.exporters.mlflow import MLflowExporter


def test_the_active_run_is_joined_and_left_active(
    server: MlflowServer, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the user's run all stands beside the user's own values, and the run goes on."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    with mlflow.start_run() as active:
        mlflow.log_param("lr", "theirs")
        exporter = MLflowExporter()
        seen: list[bool] = []

        def during(trace: object, step: int) -> None:
            seen.append("MLFLOW_HTTP_REQUEST_TIMEOUT" in os.environ)

        _, trace = train(
            dataset(),
            tmp_path,
            epochs=1,
            config={"lr": 1.0, "width": 8},
            exporters=[exporter],
            during=during,
        )
        assert exporter.run_id == active.info.run_id
        # The user's own calls keep MLflow's patience.
        assert not any(seen)
        assert mlflow.active_run() is not None
        mlflow.log_metric("theirs", 1.0)
        run = client.get_run(active.info.run_id)
        assert run.info.status == "RUNNING"
        assert run.data.params == {"lr": "theirs", "width": "8"}
        assert run.data.metrics["theirs"] == 1.0
        assert run.data.tags["gradtrace.run"] == trace.name
    assert trace.path is not None
    assert_complete(client, exporter.run_id, trace.path)
    # A later process goes on in the same run.
    later = MLflowExporter()
    send(trace.path, later, again=True)
    assert later.run_id == active.info.run_id
    assert_complete(client, later.run_id, trace.path)


def test_a_run_can_be_named_by_its_id(server: MlflowServer, client: Any) -> None:
    """`run_id` joins that run, and does not end it."""
    made = client.create_run("0")
    exporter = patient(server.url, run_id=made.info.run_id)
    exporter.open(fresh_run())
    exporter.export([healthy(0)])
    exporter.close()
    assert exporter.run_id == made.info.run_id
    assert set(history(client, made.info.run_id, "gradtrace/loss")) == {0}
    assert client.get_run(made.info.run_id).info.status == "RUNNING"


def test_a_run_directory_does_not_choose_the_server(tmp_path: Path) -> None:
    """The address in mlflow.json is named in the error, and never contacted."""
    text = '{"run_id": "abc", "own": true, "tracking_uri": "http://elsewhere.invalid"}'
    (tmp_path / "mlflow.json").write_text(text)
    with pytest.raises(ValueError, match=r"elsewhere\.invalid.*MLFLOW_TRACKING_URI"):
        MLflowExporter().open(fresh_run(path=tmp_path))
