"""What is known of a run without reading it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import new_log, record

from gradtrace.records import RunInfo
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.status import list_runs, process_is_gone, status_of
from gradtrace.runlog.writer import RunLog


def test_runs_are_listed_with_their_state(tmp_path: Path) -> None:
    """The list tells finished, running and killed runs apart and counts their steps."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    states = {"a": "finished", "b": "running", "c": "killed", "d": "running"}
    for at, name in enumerate(states):
        path = create_run_directory(tmp_path, name)
        log = RunLog(path, RunInfo(name, float(at), path))
        log.append([record(3), record(9)])
        log.flush()
        if name == "a":
            log.close({})
        if name == "c":
            log.update_info({"pid": process.pid})
        if name == "d":
            log.update_info({"pid": process.pid, "hostname": "not " + socket.gethostname()})
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").touch()
    runs = list_runs(tmp_path)
    assert [(run.name, run.status, run.started, run.steps) for run in runs] == [
        (name, status, float(at), 10) for at, (name, status) in enumerate(states.items())
    ]
    assert runs[0].path == tmp_path / "a"
    assert list_runs(tmp_path / "missing") == []


def test_damaged_runs_are_listed_as_such(tmp_path: Path) -> None:
    """Where run.json is torn, empty, lost beside steps, or has no start; what is foreign is not."""
    texts = {"torn": '{"form', "empty": "", "lost": None, "startless": '{"format": 1}'}
    for name, text in texts.items():
        path = create_run_directory(tmp_path, name)
        log = RunLog(path, RunInfo(name, 0.0, path))
        log.append([record(3)])
        log.close({})
        (path / "run.json").unlink()
        if text is not None:
            (path / "run.json").write_text(text)
    for name, text in (("list", "[]"), ("other tool", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    runs = list_runs(tmp_path)
    assert {(run.name, run.status, run.steps) for run in runs} == {
        (name, "damaged", 4) for name in texts
    }
    assert all(run.started == run.path.stat().st_mtime for run in runs)


def test_a_run_is_listed_by_its_folder(tmp_path: Path) -> None:
    """A folder that was renamed has the name by which it is found."""
    new_log(tmp_path).close({})
    [run] = list_runs(tmp_path)
    run.path.rename(tmp_path / "renamed")
    assert [one.name for one in list_runs(tmp_path)] == ["renamed"]


def test_a_process_is_gone_when_it_has_ended_on_this_machine() -> None:
    """Of a live process, of another machine's, and of what is no process number: not."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    here = socket.gethostname()
    assert process_is_gone(ended.pid, here)
    assert process_is_gone(2**62, here)  # no process can have it
    assert not process_is_gone(os.getpid(), here)
    assert not process_is_gone(1, here)  # somebody else's, where we are not root
    assert not process_is_gone(ended.pid, "not " + here)
    for strange in (None, "7", 0, -1, 1.5):
        assert not process_is_gone(strange, here)
    assert not process_is_gone(ended.pid, None)


@pytest.mark.parametrize("status", ["finished", "failed", "unknown"])
def test_only_a_running_run_can_be_killed(status: str) -> None:
    """A run that has ended keeps its status, whoever has its process number."""
    info = {"pid": 2**62, "hostname": socket.gethostname()}
    assert status_of(info | {"status": status}) == status
    assert status_of(info | {"status": "running"}) == "killed"
    assert status_of({}) == "unknown"
