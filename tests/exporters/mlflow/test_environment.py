"""Settings that are made through the environment, and taken back."""

from __future__ import annotations

import os

import pytest
from fresh_runs import fresh_run

from gradtrace.exporters.mlflow import MLflowExporter
from gradtrace.exporters.mlflow.environment import Environment


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's patience is shortened while a trace is open, the user's own choice is kept."""
    pytest.importorskip("mlflow")
    wait, tries = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    one, two = (MLflowExporter(tracking_uri="http://127.0.0.1:1", timeout=8) for _ in range(2))
    one.open(fresh_run())
    assert (os.environ[wait], os.environ[tries]) == ("4", "0")
    two.open(fresh_run())
    one.close()
    assert (os.environ[wait], os.environ[tries]) == ("4", "0")
    two.close()
    assert wait not in os.environ and tries not in os.environ
    two.close()

    monkeypatch.setenv(tries, "5")
    one.open(fresh_run())
    assert (os.environ[wait], os.environ[tries]) == ("4", "5")
    one.close()
    assert wait not in os.environ and os.environ[tries] == "5"


def test_the_first_users_values_stand_until_the_last_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the user had set is never touched, and what somebody sets meanwhile is left."""
    monkeypatch.setenv("MLFLOW_A", "user's")
    monkeypatch.delenv("MLFLOW_B", raising=False)
    settings = Environment("MLFLOW_A", "MLFLOW_B")
    with settings.applied("1", "2"):
        assert (os.environ["MLFLOW_A"], os.environ["MLFLOW_B"]) == ("user's", "2")
        with settings.applied("3", "4"):
            assert os.environ["MLFLOW_B"] == "2"
        assert os.environ["MLFLOW_B"] == "2"
    assert os.environ["MLFLOW_A"] == "user's" and "MLFLOW_B" not in os.environ
    with settings.applied("1", "2"):
        monkeypatch.setenv("MLFLOW_B", "meanwhile")
    assert os.environ["MLFLOW_B"] == "meanwhile"
