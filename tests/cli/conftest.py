"""Working directories with recorded runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spiking import dataset, train

from gradtrace import gradtrace


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the run `small` of three steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, run="small"):
        for _ in range(3):
            model(torch.ones(4, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return tmp_path / "gradtrace-runs"


@pytest.fixture
def spiking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the run `poisoned`, in which sample 77 makes spikes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "dumb")
    train(dataset(77), tmp_path / "gradtrace-runs", epochs=4, run="poisoned")
    return tmp_path
