"""A program's wandb-core, and what W&B's files hold of a run, against what the run log has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from run_values import values_of
from wandb_file import File

from gradtrace import load_run

SUPPORT = str(Path(__file__).parent)
"""Where programs of their own find these helpers."""


def number(value: Any) -> float:
    """W&B writes NaN and Inf as texts."""
    return float(value)


def core() -> int:
    """The process id of this program's wandb-core."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(folder.name)
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            name = (folder / "cmdline").read_text().split("\0")[0]
            if int(parent) == os.getpid() and state != "Z" and name.endswith("wandb-core"):
                found.append(pid)
    [pid] = found
    return pid


def assert_complete(path: Path, *files: File) -> None:
    """Every step's values are as the run log has them, in one file or another."""
    steps = load_run(path).steps.to_pylist()
    assert steps
    found: dict[int, dict[str, Any]] = {}
    for file in files:
        found |= file.steps
    assert sorted(found) == [row["step"] for row in steps]
    for key, series in values_of(path).items():
        logged = {
            s: row[f"gradtrace/{key}"] for s, row in found.items() if f"gradtrace/{key}" in row
        }
        assert logged == pytest.approx(series, rel=1e-12), key
