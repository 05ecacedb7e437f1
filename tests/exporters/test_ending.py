"""How a run ended, from its directory alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gradtrace.exporters._ending import has_failed, how_it_ended


@pytest.mark.parametrize(
    ("status", "told"),
    [("finished", "finished"), ("ended by KeyError", "ended by KeyError"), ("x" * 900, "x" * 500)],
)
def test_the_status_is_told(tmp_path: Path, status: str, told: str) -> None:
    """As it stands in run.json, cut where it is long."""
    (tmp_path / "run.json").write_text(json.dumps({"status": status}))
    assert how_it_ended(tmp_path) == told


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", "[" * 100_000])
def test_nothing_sensible_is_closed(tmp_path: Path, text: str) -> None:
    """Without a run directory, a file, or sense in it."""
    assert how_it_ended(None) == how_it_ended(tmp_path) == "closed"
    (tmp_path / "run.json").write_text(text)
    assert how_it_ended(tmp_path) == "closed"


def test_a_run_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    """Where it says that it goes on, and nobody is there any more on this machine."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid, host, told in (
        (gone.pid, socket.gethostname(), "killed"),
        (os.getpid(), socket.gethostname(), "closed"),
        (gone.pid, "elsewhere", "closed"),
        ("7", socket.gethostname(), "closed"),
    ):
        info = {"status": "running", "pid": pid, "hostname": host}
        (tmp_path / "run.json").write_text(json.dumps(info))
        assert how_it_ended(tmp_path) == told


def test_exceptions_are_failures() -> None:
    """A run that an exception ended has failed, a killed one is told as such."""
    assert has_failed("ended by KeyError") and has_failed("failed")
    assert not has_failed("finished") and not has_failed("killed")
