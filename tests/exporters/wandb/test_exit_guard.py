"""The interpreter's exit, while a thread of ours is in W&B."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from patience import patience
from wandb_runs import SUPPORT

from gradtrace import load_run
from gradtrace.exporters.wandb import core
from gradtrace.exporters.wandb.exit_guard import ExitGuard

FROZEN = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {support!r})
from spiking import dataset, train
from wandb_runs import core
from gradtrace.exporters.wandb import WandbExporter

exporter = WandbExporter()
times = []

def during(trace, step):
    times.append(time.monotonic())
    if step == 40:
        assert trace.flush({flush})
        Path("core.pid").write_text(str(core()))
        os.kill(core(), signal.SIGSTOP)

_, trace = train(dataset(3), Path("runs"), exporters=[exporter], during=during, close_timeout=2.0)
print("loop", times[-1] - times[0])
print("close", time.monotonic() - times[-1])
print("notes", [note.message for note in trace.notes])
print("path", trace.path, flush=True)
"""
"""A program whose wandb-core stops in mid-run, and which leaves its trace all the same."""

DYING = (
    """
import atexit, sys
assert "logging" not in sys.modules  # whose own hook is to run before this one

@atexit.register
def last_of_all():
    # Hooks run last in, first out: W&B's and ours are done. The core's end is an error for whoever
    # waits for it.
    os.kill(int(Path("core.pid").read_text()), signal.SIGKILL)
    print("written" if writing.wait(3.0) else "quiet", flush=True)
"""
    + FROZEN
    + """
import io
writing = threading.Event()

class Slow(io.RawIOBase):
    # Standard error with a reader so slow that a thread's line is not out when the program ends.
    def writable(self):
        return True

    def write(self, data):
        written = os.write(2, data)
        if threading.current_thread() is not threading.main_thread():
            writing.set()
            threading.Event().wait()
        return written

sys.stderr = io.TextIOWrapper(io.BufferedWriter(Slow()), line_buffering=True)
"""
)
"""The same, and at the very end the core dies."""


def run_program(code: str) -> tuple[int, dict[str, str], str]:
    """Exit code, what it printed by first word, and its standard error; the core is ended."""
    code = code.format(support=SUPPORT, flush=patience(30))
    try:
        # Into files, for the frozen core would keep a pipe open.
        with Path("out").open("w") as out, Path("err").open("w") as err:
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, stdout=out, stderr=err, timeout=patience(60))
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(Path("core.pid").read_text()), signal.SIGKILL)
    lines = [line.partition(" ") for line in Path("out").read_text().splitlines()]
    return done.returncode, {word: rest for word, _, rest in lines}, Path("err").read_text()


@pytest.mark.slow
def test_a_frozen_core_holds_up_nobody(tmp_path: Path) -> None:
    """SIGSTOP for wandb-core: the loop goes on, the trace ends in time, the interpreter exits."""
    began = time.monotonic()
    code, said, errors = run_program(FROZEN)
    took = time.monotonic() - began
    assert code == 0, errors
    assert float(said["loop"]) < patience(5)
    assert float(said["close"]) < 2 + patience(1)
    assert "wandb" in said["notes"]
    assert len(load_run(tmp_path / said["path"]).steps) == 100
    assert took < patience(40)


@pytest.mark.slow
def test_an_error_at_the_end_does_not_abort_the_interpreter() -> None:
    """A call that fails while the interpreter ends says nothing, and Python exits with 0.

    Where the thread went on with the error, and wrote a line on standard error, Python died of
    SIGABRT: could not acquire lock ... at interpreter shutdown, possibly due to daemon threads.
    """
    code, said, errors = run_program(DYING)
    assert code == 0, errors
    assert "wandb" in said["notes"] and "quiet" in said
    assert "Fatal" not in errors and "Traceback" not in errors and "is lost" not in errors


def fail() -> None:
    raise ConnectionError("the core is gone")


def try_call(guard: ExitGuard, out: threading.Event, work: Any) -> None:
    with contextlib.suppress(ConnectionError), guard.calling():
        work()
    out.set()


@pytest.mark.parametrize("before", [True, False])
def test_nobody_comes_out_with_an_error_at_exit(before: bool) -> None:
    """A call that fails when the interpreter ends, or one that is begun then, does not return."""
    guard = ExitGuard(None)
    begun, go_on, out = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait()
        fail()

    thread = threading.Thread(target=try_call, args=(guard, out, work), daemon=True)
    if before:
        thread.start()
        assert begun.wait(patience(30))
        threading.Timer(0.1, go_on.set).start()
    started = time.monotonic()
    guard._end()
    # Exit waits for the call's end, and not for the thread.
    assert time.monotonic() - started < patience(3)
    if not before:
        go_on.set()
        thread.start()
    assert not out.wait(0.3) and thread.is_alive()
    assert begun.is_set() == before


def test_errors_before_the_end_are_the_callers() -> None:
    """While the program runs, a call that fails raises as it would without a guard."""
    guard = ExitGuard(None)
    with pytest.raises(ConnectionError, match="gone"), guard.calling():
        fail()
    guard.hold_at_exit()


def test_exit_waits_for_a_call_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it takes longer than some seconds, W&B's own waiting is called off."""
    called_off: list[object] = []
    monkeypatch.setattr(core, "call_off_exit", called_off.append)
    monkeypatch.setattr("gradtrace.exporters.wandb.exit_guard.EXIT_WITHIN", 0.05)
    guard = ExitGuard("W&B")
    guard._end()
    assert called_off == []
    guard = ExitGuard("W&B")
    with guard.calling():
        guard._end()
    assert called_off == ["W&B"]
