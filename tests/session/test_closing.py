"""The end of a trace: restored first, then delivered, then what is owed is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import patience
from spiking import dataset, train
from torch import nn

from gradtrace import Spike, Trace, gradtrace, load_run
from gradtrace.pipeline.worker import ExporterWorker
from gradtrace.session import closing
from gradtrace.taps.patches import registry
from gradtrace.testing import HangingExporter, RecordingExporter

SOON = 60.0
"""A bound for failures only."""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every test ends with the threads that it began with."""
    before = set(threading.enumerate())
    yield
    for thread in threading.enumerate():
        if thread not in before and thread.name.startswith("gradtrace"):
            thread.join(SOON)
    assert set(threading.enumerate()) <= before


def one_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def new(directory: Path | None, **options: Any) -> Trace:
    return gradtrace(nn.Linear(2, 2), directory=directory, **options)


def status(trace: Trace) -> str:
    assert trace.path is not None
    text: str = load_run(trace.path).info["status"]
    return text


class Looking(RecordingExporter):
    """Remembers what was patched when it was closed."""

    patched = -1

    def close(self) -> None:
        self.patched = len(registry._installed)
        super().close()


def test_everything_is_restored_before_anybody_waits(tmp_path: Path) -> None:
    """When exporters get their last records, the loop is as it was."""
    model, exporter = nn.Linear(2, 2), Looking()
    with gradtrace(model, directory=tmp_path, exporters=[exporter]):
        assert registry._installed
        one_step(model)
    assert exporter.closed and exporter.patched == 0
    assert [record.step for record in exporter.steps] == [0]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "finished"),
        (ValueError("mine"), "ended by ValueError"),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt"),
        (SystemExit(3), "ended by SystemExit"),
        (SystemExit(0), "finished"),
        (SystemExit(), "finished"),
    ],
)
def test_the_run_says_how_it_ended(
    error: BaseException | None, expected: str, tmp_path: Path
) -> None:
    """Its status names the exception that ended it, which comes out as it was."""
    trace = new(tmp_path)

    def body() -> None:
        with trace:
            one_step(nn.Linear(2, 2))
            if error is not None:
                raise error

    if error is None:
        body()
    else:
        with pytest.raises(type(error)) as caught:
            body()
        assert caught.value is error
    assert status(trace) == expected


def test_the_user_may_say_how_it_ended(tmp_path: Path) -> None:
    """A status of the loop's own stands in `run.json`; what is no text is refused."""
    trace = new(tmp_path).start()
    for wrong in (None, "", 3):
        with pytest.raises(TypeError, match=r"the status .*; expected some text"):
            trace.close(wrong)  # type: ignore[arg-type]
    trace.close(status="stopped [early]")
    trace.close("never")
    assert status(trace) == "stopped [early]"


def test_an_unusual_end_is_known_to_exporters_that_close(tmp_path: Path) -> None:
    """`run.json` says so before exporters end their own runs."""
    seen: list[str] = []

    class Asking(RecordingExporter):
        def close(self) -> None:
            assert self.run is not None and self.run.path is not None
            seen.append(load_run(self.run.path).info["status"])

    trace = new(tmp_path, exporters=[Asking()])
    with pytest.raises(ValueError, match="mine"), trace:
        raise ValueError("mine")
    assert seen == ["ended by ValueError"]


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    """The second time nothing happens, also inside the `with` and after an error."""
    exporter = RecordingExporter()
    model = nn.Linear(2, 2)
    with gradtrace(model, directory=tmp_path, exporters=[exporter]) as trace:
        one_step(model)
        trace.close()
        first = status(trace)
        one_step(model)
    trace.close()
    assert (first, status(trace)) == ("finished", "finished")
    assert len(trace.steps) == len(exporter.steps) == 1


def test_a_closed_trace_passes_everything_through(tmp_path: Path) -> None:
    """What a loop may still call does nothing, and says so where it has a result."""
    trace = new(tmp_path)
    trace.close()  # before the start, too
    with trace:
        pass
    trace.step()
    trace.log(loss=1.0)
    assert list(trace.batches([1, 2])) == [1, 2]
    assert trace.flush() and trace.steps == []
    assert trace.path is not None and load_run(trace.path).info["summary"]["steps"] == 0


def test_the_summary_is_that_of_the_trace(tmp_path: Path) -> None:
    """Steps, lost steps, overhead and clipping stand in `run.json`."""
    model = nn.Linear(2, 2)
    with gradtrace(model, directory=tmp_path) as trace:
        for _ in range(3):
            one_step(model)
    assert trace.path is not None
    info = load_run(trace.path).info
    assert info["summary"]["steps"] == 3 and info["summary"]["dropped"] == 0
    assert info["summary"]["overhead"]["seconds"] == pytest.approx(trace.overhead.seconds)
    assert info["summary"]["clipping"]["steps"] == trace.clipping.steps


def test_an_exporter_that_hangs_is_waited_for_so_long(tmp_path: Path) -> None:
    """Leaving the `with` takes `close_timeout`, says what is owed, and the log is whole."""
    exporter = HangingExporter()
    model = nn.Linear(2, 2)
    start = time.monotonic()
    with gradtrace(
        model, directory=tmp_path, exporters=[exporter], close_timeout=0.3, run="r"
    ) as trace:
        one_step(model)
        assert exporter.reached.wait(SOON)
        start = time.monotonic()
    took = time.monotonic() - start
    assert 0.3 <= took < SOON
    [note] = trace.notes
    assert note.source == "exporter hanging" and "still owes 1 step" in note.message
    assert "gradtrace send" in note.message
    run = load_run(tmp_path / "r")
    assert run.info["status"] == "finished" and run.steps.num_rows == 1
    assert [event.message for event in run.events] == [note.message]
    exporter.release()


def interrupted(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Ctrl-C is pressed so many times, each time while an exporter is waited for."""
    waiting = ExporterWorker.join
    interrupts = [KeyboardInterrupt() for _ in range(times)]

    def join(self: ExporterWorker, timeout: float) -> bool:
        if interrupts:
            raise interrupts.pop()
        return waiting(self, timeout)

    monkeypatch.setattr(ExporterWorker, "join", join)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_leaving_keeps_the_run_log_whole(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pressed while an exporter is waited for, once or twice: all is on disk, and it comes out."""
    exporter = HangingExporter()
    interrupted(monkeypatch, times)
    with pytest.raises(KeyboardInterrupt):
        train(dataset(), tmp_path, run="r", exporters=[exporter], close_timeout=SOON, epochs=1)
    run = load_run(tmp_path / "r")
    assert run.steps.num_rows == 50 and run.info["status"] == "finished"
    assert times > 1 or "still owes" in "".join(
        note.message for note in run.events if note.kind == "note"
    )
    assert not registry._installed
    exporter.release()


@pytest.mark.swallows
def test_an_error_of_ours_while_leaving_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, internal_errors: list[Exception]
) -> None:
    """It is noted, the run log is whole, and the loop's thread sees nothing of it."""

    def join(self: ExporterWorker, timeout: float) -> bool:
        raise OSError("on purpose")

    waiting = ExporterWorker.join
    monkeypatch.setattr(ExporterWorker, "join", join)
    exporter = RecordingExporter()
    model = nn.Linear(2, 2)
    with gradtrace(model, directory=tmp_path, exporters=[exporter]) as trace:
        one_step(model)
    monkeypatch.setattr(ExporterWorker, "join", waiting)
    assert status(trace) == "finished"
    assert any("on purpose" in note.message for note in trace.notes)
    assert [str(error) for error in internal_errors] == ["on purpose"] * 2


def test_a_callback_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No callback is ever called on the loop's thread, and what was not recorded is told."""
    monkeypatch.setattr(closing, "DRAIN", 0.2)
    reached, released = threading.Event(), threading.Event()
    called_in: list[threading.Thread] = []

    def hang(spike: Spike) -> None:
        called_in.append(threading.current_thread())
        reached.set()
        assert released.wait(SOON)

    def during(trace: Trace, step: int) -> None:
        if step == 100:  # the first two epochs had some
            assert reached.wait(SOON)

    try:
        _, trace = train(
            dataset(7, 77, 140, 399), tmp_path, run="r", epochs=3, on_spike=hang, during=during
        )
        assert threading.current_thread() not in called_in and len(called_in) == 1
        told = [note.message for note in trace.notes if note.source == "background"]
        assert len(told) == 1 and "on_spike" in told[0]
        run = load_run(tmp_path / "r")
        assert run.info["status"] == "finished"
        assert told[0] in [event.message for event in run.events]
    finally:
        released.set()


CLOSED_BY_ATEXIT = """
import sys, torch
from torch import nn
from gradtrace import gradtrace
from gradtrace.testing import RecordingExporter

class Printing(RecordingExporter):
    def close(self):
        print("closed with", len(self.steps), flush=True)

model = nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
trace = gradtrace(model, directory=sys.argv[1], run="r", exporters=[Printing()]).start()
for _ in range(5):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_the_end_of_the_process_closes_a_trace(tmp_path: Path) -> None:
    """A script that only starts a trace has a whole run, with its exporters closed."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_BY_ATEXIT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed with 5\n", "")
    run = load_run(tmp_path / "r")
    assert run.steps.num_rows == 5 and run.info["status"] == "finished"


DIES = """
import signal, sys, threading, torch
from torch import nn
from gradtrace import gradtrace
model = nn.Linear(2, 2)
trace = gradtrace(model, directory=sys.argv[1], run="r").start()
how = sys.argv[2]
if how == "caught":
    try:
        raise KeyError("caught")
    except KeyError:
        pass
elif how.startswith("exit"):
    sys.exit(int(how[-1]))
elif how == "interrupt":
    # What runs in the background of a shell is born deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
elif "thread" in how:
    def work():
        mine = gradtrace(nn.Linear(2, 2), directory=sys.argv[1], run="t").start()
        try:
            if how != "well in a thread":
                raise OSError("in a thread")
        finally:
            global kept
            kept = mine
    one = threading.Thread(target=work)
    one.start()
    one.join()
else:
    raise RuntimeError("boom")
"""


@pytest.mark.parametrize(
    ("how", "code", "expected"),
    [
        ("raise", 1, "ended by RuntimeError"),
        ("caught", 0, "finished"),
        ("exit 3", 3, "finished"),
        ("exit 0", 0, "finished"),
        ("interrupt", -2, "ended by KeyboardInterrupt"),
        ("in another thread", 0, "finished"),
    ],
)
def test_a_process_that_dies_says_so(how: str, code: int, expected: str, tmp_path: Path) -> None:
    """An exception that ends the process is the run's end; one that was caught is not.

    Nor is one that ended another thread. Of `sys.exit(3)` nothing is known by then.
    """
    done = died(how, tmp_path)
    assert done.returncode == code, done.stderr
    assert load_run(tmp_path / "r").info["status"] == expected


def died(how: str, directory: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", DIES, str(directory), how],
        capture_output=True,
        timeout=patience(120),
    )


@pytest.mark.parametrize(
    ("how", "expected"),
    [("in a thread", "ended by OSError"), ("well in a thread", "finished")],
)
def test_a_thread_that_dies_is_the_end_of_what_it_trained(
    how: str, expected: str, tmp_path: Path
) -> None:
    """The run that was begun in a thread says what ended that; the process ends well."""
    done = died(how, tmp_path)
    assert done.returncode == 0 and (b"in a thread" in done.stderr) == (how == "in a thread")
    assert load_run(tmp_path / "t").info["status"] == expected


def test_a_trace_may_be_left_in_another_thread(tmp_path: Path) -> None:
    """All is recorded and restored, and no error of ours comes up."""
    model = nn.Linear(2, 2)
    trace = gradtrace(model, directory=tmp_path, run="r").start()
    for _ in range(3):
        one_step(model)
    thread = threading.Thread(target=trace.close, args=("stopped",))
    thread.start()
    thread.join(patience(SOON))
    one_step(model)
    run = load_run(tmp_path / "r")
    assert run.steps.num_rows == 3 and run.info["status"] == "stopped"
    assert not registry._installed and trace.notes == []


def in_a_child(work: Any) -> int:
    """The exit status of a forked process that does the work, killed when it takes too long."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            code = 0 if work() else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        done, exit_status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(exit_status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -1


def test_a_forked_child_leaves_the_trace_alone(tmp_path: Path) -> None:
    """It may call all that a loop calls: nothing is recorded, written, waited for or closed."""
    exporter = RecordingExporter()
    model = nn.Linear(2, 2)
    with gradtrace(model, directory=tmp_path, exporters=[exporter]) as trace:
        one_step(model)
        assert trace.flush(SOON)
        wiring = trace._wiring
        assert wiring is not None and wiring.background is not None and trace.path is not None
        background = wiring.background
        before = sorted((path.name, path.stat().st_size) for path in trace.path.iterdir())
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with background._turned:
                held.set()
                go_on.wait(SOON)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(SOON)

        def work() -> bool:
            one_step(model)
            trace.log(loss=1.0)
            trace.step()
            passed = list(trace.batches([1])) == [1]
            flushed = trace.flush(SOON)
            trace.close()
            return passed and flushed and trace._wiring is wiring and len(wiring.handoff) == 0

        try:
            assert in_a_child(work) == 0
        finally:
            go_on.set()
            holder.join(SOON)
        after = sorted((path.name, path.stat().st_size) for path in trace.path.iterdir())
        assert after == before
        one_step(model)
    assert status(trace) == "finished" and len(exporter.steps) == 2


@pytest.mark.swallows
def test_a_callback_cannot_end_its_own_trace(
    tmp_path: Path, internal_errors: list[Exception]
) -> None:
    """`close` in a callback raises with advice and changes nothing; `flush` does not wait there."""
    flushed: list[bool] = []
    traces: list[Trace] = []
    called = threading.Event()

    def on_spike(spike: Spike) -> None:
        start = time.monotonic()
        flushed.append(traces[0].flush(SOON) or time.monotonic() - start >= SOON)
        called.set()
        traces[0].close()

    def during(trace: Trace, step: int) -> None:
        traces[:] = [trace]
        if step == 99:  # there was a spike before
            assert called.wait(SOON)

    _, trace = train(dataset(77), tmp_path, epochs=2, on_spike=on_spike, during=during)
    assert flushed[0] is False
    assert {type(error) for error in internal_errors} <= {RuntimeError}
    assert "expected the thread that trains" in str(internal_errors[0])
    assert status(trace) == "finished" and len(trace.steps) == 100
