"""How runs end in MLflow."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from build import healthy
from fresh_runs import fresh_run
from mlflow_runs import history, patient, send
from mlflow_server import MlflowServer
from spiking import dataset, train


def test_what_fails_at_the_end_holds_up_nothing_else(
    server: MlflowServer,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where no figure can be drawn the run still ends, with all else."""
    (tmp_path / "events.jsonl").write_text("{}\n")
    exporter = patient(server.url)
    exporter.open(fresh_run(path=tmp_path))
    exporter.export([healthy(0), healthy(1)])

    def fail(path: Path) -> bool:
        raise RuntimeError("no figure")

    monkeypatch.setattr(exporter._curves, "draw", fail)
    with caplog.at_level(logging.WARNING, "gradtrace"):
        exporter.close()
    run = client.get_run(exporter.run_id)
    assert run.info.status == "FINISHED"
    for key in ("spikes", "spike_share", "clip/fraction_overall"):
        assert set(history(client, exporter.run_id, f"gradtrace/{key}")) >= {2}, key
    assert run.data.tags["gradtrace.status"] == "closed"
    assert client.list_artifacts(exporter.run_id, "gradtrace")[0].path == "gradtrace/events.jsonl"
    [told] = [r.getMessage() for r in caplog.records if r.name == "gradtrace"]
    assert "it lacks files: RuntimeError: no figure" in told


def test_a_run_that_an_exception_ended_has_failed(
    server: MlflowServer, client: Any, tmp_path: Path
) -> None:
    """MLflow's run is FAILED, whether it was there or the run is sent later."""

    def fail(trace: object, step: int) -> None:
        raise KeyError(step)

    there = patient(server.url)
    for exporters in ([there], []):
        name = f"with {len(exporters)}"
        with pytest.raises(KeyError):
            train(dataset(), tmp_path, run=name, epochs=1, during=fail, exporters=exporters)
    send(tmp_path / "with 0", later := patient(server.url))
    for exporter in (there, later):
        run = client.get_run(exporter.run_id)
        assert run.info.status == "FAILED"
        assert run.data.tags["gradtrace.status"] == "ended by KeyError"


def test_a_run_that_was_killed_says_so(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    """Sent after its process has vanished, MLflow's run is KILLED; of a live one it is FINISHED."""
    _, trace = train(dataset(), tmp_path, epochs=1)
    assert trace.path is not None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    told = {}
    for pid in (gone.pid, os.getpid()):
        state = json.loads((trace.path / "run.json").read_text()) | {
            "status": "running",
            "pid": pid,
        }
        (trace.path / "run.json").write_text(json.dumps(state))
        send(trace.path, exporter := patient(server.url), again=True)
        run = client.get_run(exporter.run_id)
        told[pid] = run.info.status, run.data.tags["gradtrace.status"]
        (trace.path / "mlflow.json").unlink()
        client.delete_run(exporter.run_id)
    assert told == {gone.pid: ("KILLED", "killed"), os.getpid(): ("FINISHED", "closed")}


def test_a_run_without_a_single_good_value_has_no_figure(server: MlflowServer, client: Any) -> None:
    """Nothing but NaN still ends in a finished run with its summary."""
    exporter = patient(server.url)
    exporter.open(fresh_run())
    exporter.export([healthy(0, loss=math.nan, norm=math.nan)])
    exporter.close()
    run = client.get_run(exporter.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["gradtrace/nonfinite_steps"] == 1
    assert client.list_artifacts(exporter.run_id, "gradtrace") == []
