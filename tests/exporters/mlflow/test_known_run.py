"""What the run directory tells of the MLflow run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from build import healthy
from fresh_runs import fresh_run
from mlflow_runs import patient
from mlflow_server import MlflowServer

from gradtrace.exporters.mlflow import MLflowExporter


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"run_id": 5, "own": true, "tracking_uri": null}', "[" * 100_000]
)
def test_a_damaged_file_is_no_file(server: MlflowServer, tmp_path: Path, text: str) -> None:
    """Whatever stands in mlflow.json, the run is found or made, and the file is right again."""
    (tmp_path / "mlflow.json").write_text(text)
    exporter = patient(server.url)
    exporter.open(fresh_run(path=tmp_path))
    exporter.export([healthy(0)])
    exporter.close()
    stored = json.loads((tmp_path / "mlflow.json").read_text())
    assert stored == {"run_id": exporter.run_id, "own": True, "tracking_uri": server.url}


def test_passwords_stay_out_of_the_run_directory(tmp_path: Path) -> None:
    """An address with user and password is not written down."""
    exporter = MLflowExporter(tracking_uri="http://me:secret@127.0.0.1:1", run_id="ab" * 16)
    exporter.open(fresh_run(path=tmp_path))
    exporter.close()
    assert "secret" not in (tmp_path / "mlflow.json").read_text()
