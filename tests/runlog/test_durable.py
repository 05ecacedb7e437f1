"""A run survives what happens to its process and its disk."""

from __future__ import annotations

import logging
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import patience
from torch import nn

from gradtrace import Run, Trace, gradtrace, load_run

MESSAGE = struct.Struct("<qd")


def train(trace: Any, steps: int, tell: int | None = None, *, spoil: int = -1) -> None:
    """Trains a small model; tells each finished step's number and time through a pipe."""
    model, optimizer = trace
    x, y = torch.randn(4, 6), torch.randint(0, 2, (4,))
    for k in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        (loss * float("nan") if k == spoil else loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if k != spoil:
            optimizer.step()
        else:
            optimizer.zero_grad()
            optimizer.step()
        if tell is not None:
            os.write(tell, MESSAGE.pack(k, time.monotonic()))


def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def killed(directory: Path, name: str, after: float) -> list[tuple[int, float]]:
    """Steps that a forked training process finished before it was killed, and when."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        torch.set_num_threads(1)
        model, optimizer = pair()
        with gradtrace(model, directory=directory, run=name):
            train((model, optimizer), 10_000_000, writing)
        os._exit(0)
    os.close(writing)
    told = b""
    deadline: float | None = None
    while deadline is None or time.monotonic() < deadline:
        told += os.read(reading, 1 << 16)
        if deadline is None:
            deadline = time.monotonic() + after
    os.kill(pid, signal.SIGKILL)
    while more := os.read(reading, 1 << 16):
        told += more
    os.close(reading)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    return list(MESSAGE.iter_unpack(told[: len(told) // MESSAGE.size * MESSAGE.size]))


@pytest.mark.slow
def test_a_killed_run_misses_a_second_at_most(tmp_path: Path) -> None:
    """After SIGKILL at 20 random moments every run opens and lacks only its last second."""
    chance = random.Random(0)
    second = patience(1.0)
    for k in range(20):
        told = killed(tmp_path, f"run-{k}", chance.uniform(0.05, 2.0))
        run = load_run(tmp_path / f"run-{k}")
        steps = run.steps.column("step").to_pylist()
        assert steps == list(range(len(steps)))
        _, end = told[-1]
        due = [step for step, when in told if when < end - second]
        assert len(steps) >= len(due)
        # Tables are written first: no step is ever without its own.
        assert set(steps) <= set(run.gradients.column("step").to_pylist())
        assert run.status == "killed"


def test_events_are_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    """A non-finite step is in the events file as soon as the trace has flushed."""
    model, optimizer = pair()
    with gradtrace(model, directory=tmp_path) as trace:
        model[0].weight.register_hook(lambda g: g * float("inf"))  # type: ignore[index]
        train((model, optimizer), 1)
        assert trace.flush()
        assert trace.path is not None
        assert [event.kind for event in load_run(trace.path).events] == ["nonfinite"]


def test_a_run_reads_back_what_the_trace_showed(tmp_path: Path) -> None:
    """Records from the directory equal the trace's own, tables, losses, clips and all."""
    model, optimizer = pair()
    config = {"lr": 0.01, "layers": [1, 2], "odd": object()}
    with gradtrace(model, directory=tmp_path, config=config) as trace:
        train((model, optimizer), 30)
        trace.log(accuracy=0.5)
    assert trace.path is not None
    run: Run = load_run(trace.path)
    assert list(run.records()) == trace.steps
    assert trace.steps[-1].logged == {"accuracy": 0.5}
    assert run.info["config"]["lr"] == 0.01
    assert run.info["status"] == "finished"
    names = [p["name"] for p in run.info["parameters"]]
    assert names == [name for name, _ in model.named_parameters()]
    assert run.gradients.num_rows == 30 * len(names)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_costs_records_and_nothing_else(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the disk fills up training goes on, with one warning; what was kept is readable."""
    caplog.set_level(logging.WARNING, "gradtrace")
    model, optimizer = pair()
    with gradtrace(model, directory=tiny_disk) as trace:
        (tiny_disk / "filler").write_bytes(b"x" * 100_000)
        for _ in range(10):
            train((model, optimizer), 100)
            trace.flush()
    assert len(trace.steps) == 1000
    warnings = [r for r in caplog.records if "cannot be written" in r.getMessage()]
    assert len(warnings) == 1
    assert any("cannot be written" in note.message for note in trace.notes)
    assert trace.path is not None
    kept = load_run(trace.path).steps.column("step").to_pylist()
    assert 0 < len(kept) < 1000 and kept == list(range(len(kept)))


def test_an_unwritable_directory_is_noted_and_training_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where no directory can be made the run is traced in memory, with one warning."""
    caplog.set_level(logging.WARNING, "gradtrace")
    model, optimizer = pair()
    trace: Trace
    with gradtrace(model, directory="/proc/no-such-place") as trace:
        train((model, optimizer), 5)
    assert trace.path is None and len(trace.steps) == 5
    assert [note.source for note in trace.notes] == ["run log"]
    assert len([r for r in caplog.records if "cannot be written" in r.getMessage()]) == 1
