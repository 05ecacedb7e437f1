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
from gradtrace.exporters.mlflow.known_run import KnownRun, load_known_run


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
    pytest.importorskip("mlflow")
    exporter = MLflowExporter(tracking_uri="http://me:secret@127.0.0.1:1", run_id="ab" * 16)
    exporter.open(fresh_run(path=tmp_path))
    exporter.close()
    assert "secret" not in (tmp_path / "mlflow.json").read_text()


def test_what_was_saved_is_known_again(tmp_path: Path) -> None:
    """By the name the exporter had in its trace; of another name, or without a folder, nothing."""
    known = KnownRun("ab12", own=True, tracking_uri="http://127.0.0.1:5000")
    known.save(tmp_path, "mlflow/2")
    assert load_known_run(tmp_path, "mlflow/2") == known
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow_2.json"]
    assert load_known_run(tmp_path, "mlflow") is None and load_known_run(None, "mlflow/2") is None
    known.save(None, "mlflow")
    known.save(tmp_path / "nowhere", "mlflow")


@pytest.mark.parametrize("run_id", ["../other", "", "a b", 7, None])
def test_an_id_that_is_none_of_mlflows_is_not_used(tmp_path: Path, run_id: object) -> None:
    """Whoever wrote the file, it leads to no other place on the server."""
    text = json.dumps({"run_id": run_id, "own": True, "tracking_uri": None})
    (tmp_path / "mlflow.json").write_text(text)
    assert load_known_run(tmp_path, "mlflow") is None
