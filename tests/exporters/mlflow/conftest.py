"""A real MLflow server, and an environment without settings of MLflow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer, is_missing


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of MLflow's are set, and what it leaves behind is the test's."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One for all, as its start takes seconds."""
    if is_missing():
        pytest.skip("the mlflow server is not installed")
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def client(server: MlflowServer) -> Any:
    """MLflow's own client of the server."""
    from mlflow import MlflowClient

    return MlflowClient(server.url)
