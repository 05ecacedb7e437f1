"""Where a run goes: MLflow's active run, one named by its id, or one of its own."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from build import healthy
from fresh_runs import fresh_run
from mlflow_runs import assert_complete, history, patient, send
from mlflow_server import MlflowServer
from spiking import dataset, train

from gradtrace.exporters.mlflow import MLflowExporter
from gradtrace.exporters.mlflow.destination import Destination, choose_destination
from gradtrace.exporters.mlflow.known_run import KnownRun


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
    pytest.importorskip("mlflow")
    text = '{"run_id": "abc", "own": true, "tracking_uri": "http://elsewhere.invalid"}'
    (tmp_path / "mlflow.json").write_text(text)
    with pytest.raises(ValueError, match=r"elsewhere\.invalid.*MLFLOW_TRACKING_URI"):
        MLflowExporter().open(fresh_run(path=tmp_path))


class Client:
    """MLflow's module, as far as a destination asks it."""

    def __init__(self, *, chosen: bool = False, active: str | None = None) -> None:
        self._chosen = chosen
        self._active = active

    def get_tracking_uri(self) -> str:
        return "http://current"

    def is_tracking_uri_set(self) -> bool:
        return self._chosen

    def active_run(self) -> object:
        info = SimpleNamespace(run_id=self._active)
        return None if self._active is None else SimpleNamespace(info=info)


def chosen(client: Client, **options: Any) -> Destination:
    asked: dict[str, Any] = dict.fromkeys(("tracking_uri", "experiment", "run_id", "known"))
    return choose_destination(client, "run", **asked | options)


def test_what_the_user_says_goes_before_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run by its id; else that of an earlier process; else the active one; else one of ours."""
    client, known = Client(active="ac1"), KnownRun("kn1", own=True, tracking_uri=None)
    here = "http://current"
    assert chosen(client, run_id="gi1", known=known) == Destination(here, "gi1", given=True)
    assert chosen(client, known=known) == Destination(here, "kn1", own=True)
    assert chosen(client) == Destination(here, "ac1")
    assert chosen(Client()) == Destination(here)
    # The active run, and MLflow's settings, are those of MLflow's own server.
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    assert chosen(client, tracking_uri="http://other") == Destination("http://other")
    assert chosen(Client()) == Destination(here, experiment="named")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    assert chosen(Client()) == Destination(here, experiment_id="7")
    assert chosen(Client(), experiment="mine") == Destination(
        here, experiment="mine", experiment_id="7"
    )


def test_an_experiment_beside_an_active_run_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The run goes where the user's is; that the experiment is not used is a warning."""
    assert chosen(Client(active="ac1"), experiment="mine").run_id == "ac1"
    assert "experiment='mine' is for a run of its own" in caplog.text


def test_another_server_than_before_must_be_meant() -> None:
    """One that was set is, and so is the same one; a mere default is not."""
    known = KnownRun("kn1", own=True, tracking_uri="http://before")
    with pytest.raises(ValueError, match=r"sent to 'http://before'.*MLFLOW_TRACKING_URI"):
        chosen(Client(), known=known)
    assert chosen(Client(chosen=True), known=known).server == "http://current"
    assert chosen(Client(), known=known, tracking_uri="http://other").server == "http://other"
    same = KnownRun("kn1", own=True, tracking_uri="http://current")
    assert chosen(Client(), known=same).run_id == "kn1"
