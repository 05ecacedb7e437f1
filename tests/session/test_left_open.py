"""Traces that were left open, and those that are meant to run side by side."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import patience
from torch import nn

from gradtrace import Trace, gradtrace, load_run
from gradtrace.session import closing, left_open
from gradtrace.taps.patches import registry
from gradtrace.testing import RecordingExporter


@pytest.fixture(autouse=True)
def all_are_closed() -> Iterator[None]:
    """No test leaves a trace open, or anything replaced."""
    yield
    for thread in threading.enumerate():
        if thread.name.endswith("-closing"):
            thread.join(patience(60))
    for one in list(left_open._open):
        closing.end(one.wiring, "finished")
    assert left_open._open == [] and not registry._installed


class Loop:
    def __init__(self) -> None:
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def steps(self, count: int = 3) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            self.model(torch.ones(1, 2)).sum().backward()
            self.optimizer.step()


def closed(directory: Path, run: str) -> Any:
    """The run, when nothing is delivered any more."""
    for thread in threading.enumerate():
        if thread.name == f"gradtrace-{run}-closing":
            thread.join(patience(60))
    return load_run(directory / run)


def messages(run: Any) -> str:
    return " ".join(event.message for event in run.events if event.kind == "note")


def test_a_trace_that_nobody_holds_records_until_the_next_one(tmp_path: Path) -> None:
    """`gradtrace(model).start()` alone is a plain use; the next one of the model ends it."""
    loop = Loop()
    gradtrace(loop.model, directory=tmp_path, run="a").start()
    gc.collect()
    loop.steps(3)
    with gradtrace(loop.model, directory=tmp_path, run="b") as trace:
        assert load_run(tmp_path / "a").info["status"] == "finished"
        loop.steps(2)
    assert load_run(tmp_path / "a").steps.num_rows == 3
    assert load_run(tmp_path / "b").steps.num_rows == 2
    assert "ended when the run 'b' began" in messages(load_run(tmp_path / "a"))
    [note] = trace.notes
    assert "the run 'a' of the same model was left open" in note.message
    assert "`with gradtrace(...)`" in note.message


def test_a_name_that_holds_the_next_trace_lets_go_of_the_last(tmp_path: Path) -> None:
    """As in a cell that is run again: the old run ends at the first backward of the new one.

    The loop does not wait for its exporters, which get all of it.
    """
    loop = Loop()
    exporter = RecordingExporter()
    trace = gradtrace(loop.model, directory=tmp_path, run="a", exporters=[exporter]).start()
    loop.steps(3)
    trace = gradtrace(loop.model, directory=tmp_path, run="b").start()
    loop.steps(2)
    old = closed(tmp_path, "a")
    assert old.info["status"] == "finished" and old.steps.num_rows == 3
    assert exporter.closed and len(exporter.steps) == 3
    trace.close()
    assert load_run(tmp_path / "b").steps.num_rows == 2
    assert ["left open" in note.message for note in trace.notes] == [True]


def test_a_frame_that_an_exception_ended_holds_nothing_open(tmp_path: Path) -> None:
    """The last traceback, which an interpreter keeps, is not somebody who could close a trace."""
    loop = Loop()

    def train() -> None:
        trace = gradtrace(loop.model, directory=tmp_path, run="a").start()
        loop.steps(1)
        trace.log(x=1.0)
        raise ValueError("mine")

    kept: list[BaseException] = []
    try:
        train()
    except ValueError as error:
        kept.append(error)
    with gradtrace(loop.model, directory=tmp_path, run="b"):
        loop.steps(1)
    assert closed(tmp_path, "a").info["status"] == "finished" and kept
    assert "was left open" in messages(load_run(tmp_path / "b"))


def test_two_traces_side_by_side_go_on() -> None:
    """Both in a `with`: each has all steps, and nothing is noted."""
    loop = Loop()
    with gradtrace(loop.model, directory=None) as one:
        loop.steps(1)
        with gradtrace(loop.model, directory=None) as two:
            loop.steps(3)
    assert (len(one.steps), len(two.steps)) == (4, 3)
    assert one.notes == [] and two.notes == []


def test_what_somebody_holds_goes_on_and_is_noted() -> None:
    """Two started traces that are both held may be meant: both record, and the newer says so."""
    loop = Loop()
    traces = [gradtrace(loop.model, directory=None, run=run).start() for run in "ab"]
    loop.steps(3)
    for trace in traces:
        trace.close()
    assert [len(trace.steps) for trace in traces] == [3, 3]
    assert traces[0].notes == []
    [note] = traces[1].notes
    assert "the run 'a' traces this model too" in note.message and "trace.close()" in note.message


def test_traces_of_other_models_are_let_alone() -> None:
    """Also of those that nobody holds any more."""
    loop, other = Loop(), Loop()
    gradtrace(other.model, directory=None).start()
    [kept] = left_open._open
    with gradtrace(loop.model, directory=None) as trace:
        loop.steps(1)
        assert not kept.wiring.ending and trace.notes == []
        # A model that shares a layer with it is traced by both.
        with gradtrace(nn.Sequential(other.model, nn.Linear(2, 2)), directory=None):
            assert kept.wiring.ending


def test_a_trace_that_another_thread_trains_is_not_ended() -> None:
    """Nobody holds it, and yet it may be in the middle of a step."""
    loop = Loop()
    started, go_on = threading.Event(), threading.Event()

    def work() -> None:
        gradtrace(loop.model, directory=None).start()
        started.set()
        assert go_on.wait(patience(60))

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(patience(60))
    [kept] = left_open._open
    with gradtrace(loop.model, directory=None):
        assert not kept.wiring.ending
    go_on.set()
    thread.join(patience(60))
    with gradtrace(loop.model, directory=None):
        assert kept.wiring.ending


class Shell:
    """What is asked of IPython."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.user_ns = namespace
        self.execution_count = 0
        namespace["Out"] = {}

    def run(self, cell: str) -> None:
        """A cell: its code's file is named by its text, and a last value is kept."""
        self.execution_count += 1
        code = compile(cell, f"<cell {hash(cell)}>", "exec")
        with contextlib.suppress(ZeroDivisionError):
            exec(code, self.user_ns)
        if "result" in self.user_ns:
            self.user_ns["Out"][self.execution_count] = self.user_ns.pop("result")


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    """A notebook, with a loop and a folder."""
    names = {"loop": Loop(), "gradtrace": gradtrace, "folder": tmp_path}
    shell = Shell(names)
    module = types.ModuleType("IPython")
    module.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)
    return shell


CELL = """
trace = gradtrace(loop.model, directory=folder, run=name).start()
loop.steps(2)
1 / 0
trace.close()
"""


def test_a_cell_that_is_run_again_ends_what_it_left_open(shell: Shell, tmp_path: Path) -> None:
    """Before its trace begins, so that names and ports are free; unchanged, or changed later."""
    for name, cell in (("a", CELL), ("b", CELL), ("c", CELL + "\n# again")):
        shell.user_ns["name"] = name
        shell.run(cell)
    for name in "ab":
        run = closed(tmp_path, name)
        assert (run.info["status"], run.steps.num_rows) == ("finished", 2)
        assert "this run was left open" in messages(run)
    trace: Trace = shell.user_ns["trace"]
    assert trace.name == "c" and [n.source for n in trace.notes] == ["trace"]
    trace.close()


def test_two_cells_may_begin_a_trace_each(shell: Shell) -> None:
    """Under names of their own both go on, whether one cell made them or two."""
    make = "def make(run): return gradtrace(loop.model, directory=None, run=run).start()"
    for cell in (make, "a = make('a')", "b = make('b')", "c, d = make('c'), make('d')"):
        shell.run(cell)
    shell.run("loop.steps(1)")
    traces = [shell.user_ns[name] for name in "abcd"]
    for trace in traces:
        trace.close()
    assert [len(trace.steps) for trace in traces] == [1] * 4
    assert all("traces this model too" in note.message for t in traces for note in t.notes)


def test_a_list_of_results_holds_nothing_open(shell: Shell, tmp_path: Path) -> None:
    """What a cell has shown as its last value is kept by the notebook, and by nobody else."""
    shell.run("result = gradtrace(loop.model, directory=folder, run='a').start()")
    shell.run("with gradtrace(loop.model, directory=folder, run='b'): loop.steps(1)")
    assert closed(tmp_path, "a").info["status"] == "finished"
    assert "run 'a' of the same model was left open" in messages(load_run(tmp_path / "b"))
