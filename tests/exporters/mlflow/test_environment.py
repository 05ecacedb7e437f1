"""Settings that are made through the environment, and taken back."""

from __future__ import annotations

import os

import pytest
from fresh_runs import fresh_run

from gradtrace.exporters.mlflow import MLflowExporter


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's patience is shortened while a trace is open, the user's own choice is kept."""
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
