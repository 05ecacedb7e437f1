"""The run in MLflow: found or made, with its parameters."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from build import healthy
from fresh_runs import fresh_run
from mlflow_runs import assert_complete, history, patient, send
from mlflow_server import LossyProxy, MlflowServer
from spiking import dataset, train


def test_a_parameter_that_is_set_holds_up_nothing(
    server: MlflowServer, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 150 parameters one stands with another value: it stays, is named, the others arrive."""
    made = client.create_run("0")
    client.log_param(made.info.run_id, "p7", "theirs")
    exporter = patient(server.url, run_id=made.info.run_id)
    exporter.open(fresh_run(config={f"p{n}": n for n in range(150)}))
    with caplog.at_level(logging.WARNING, "gradtrace"):
        exporter.export([healthy(0)])
        exporter.close()
    params = client.get_run(made.info.run_id).data.params
    assert params == {f"p{n}": str(n) for n in range(150)} | {"p7": "theirs"}
    assert "p7" in caplog.text and "p8" not in caplog.text


def test_a_parameter_set_in_between_holds_up_nothing(
    server: MlflowServer, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that somebody sets after we looked is refused alone, not with its whole batch."""
    made = client.create_run("0")

    def interfere(line: str) -> None:
        if "log-batch" in line and not seen:
            seen.append(line)
            client.log_param(made.info.run_id, "b", "theirs")

    seen: list[str] = []
    with LossyProxy(server.port, before=interfere) as proxy:
        exporter = patient(proxy.url, run_id=made.info.run_id)
        exporter.open(fresh_run(config={"a": 1, "b": 2, "c": 3}))
        with caplog.at_level(logging.WARNING, "gradtrace"):
            exporter.export([healthy(0)])
        exporter.close()
    assert client.get_run(made.info.run_id).data.params == {"a": "1", "b": "theirs", "c": "3"}
    assert caplog.text.count("stay as they are there: b") == 1


def test_lost_answers_double_nothing(server: MlflowServer, client: Any) -> None:
    """Every other answer is lost after the server did its part: one run, every row once."""
    answers: dict[str, int] = {}

    def lose(line: str) -> bool:
        path = line.split("?")[0]
        answers[path] = answers.get(path, 0) + 1
        return answers[path] % 2 == 1

    run = fresh_run("lossy")
    records = [healthy(step, logged={f"k{n}": n for n in range(20)}) for step in range(60)]
    with LossyProxy(server.port, lose=lose) as proxy:
        exporter = patient(proxy.url, experiment="lossy")
        exporter.open(run)
        failures = 0
        for start in (0, 30):
            while True:
                try:
                    exporter.export(records[start : start + 30])
                    break
                except Exception:
                    failures += 1
                    assert failures < 50
        exporter.close()
        assert proxy.lost >= failures > 5
    experiment = client.get_experiment_by_name("lossy")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == exporter.run_id
    for key in found.data.metrics:
        if key.startswith("gradtrace/logged/") or key == "gradtrace/step":
            assert set(history(client, exporter.run_id, key)) == set(range(60)), key


def test_a_run_that_is_gone_is_replaced(
    server: MlflowServer, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A deleted run of ours, or one this server never had, is not waited for."""
    _, trace = train(dataset(), tmp_path, epochs=1)
    assert trace.path is not None
    send(trace.path, first := patient(server.url))
    client.delete_run(first.run_id)
    send(trace.path, second := patient(server.url), again=True)
    assert second.run_id != first.run_id and str(first.run_id) in caplog.text
    assert_complete(client, second.run_id, trace.path)
    file = trace.path / "mlflow.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"run_id": "0" * 32}))
    send(trace.path, third := patient(server.url), again=True)
    assert third.run_id == second.run_id
