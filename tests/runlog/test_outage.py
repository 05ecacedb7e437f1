"""The run log on a disk that refuses."""

from __future__ import annotations

import ctypes
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_runs import Clock, numbers, open_log, record, skipped

from gradtrace.records import (
    StepRecord,
)
from gradtrace.records.histograms import BINS, LayerHistograms
from gradtrace.runlog import writer
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.outage import Outage
from gradtrace.runlog.reader import load_run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create_run_directory(tmp_path / "runs", "run")


def test_an_outage_is_told_at_both_ends_and_attempts_are_spaced(path: Path) -> None:
    """One message when it begins, one when it ends; pauses double from a second to a minute."""
    told: list[str] = []
    clock = Clock()
    outage = Outage(path, clock, told.append)
    assert not outage.active and not outage.waiting()
    pauses = []
    for _ in range(9):
        outage.begin(OSError(errno.ENOSPC, "No space left"), lost=3)
        start = clock.now
        while outage.waiting():
            clock.now += 0.5
        pauses.append(clock.now - start)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(told) == 1 and "cannot be written (No space left)" in told[0]
    outage.end(lost=5)
    assert not outage.active and "2 records were lost meanwhile" in told[1]
    outage.begin(OSError("again"), lost=5)
    assert len(told) == 3 and outage.waiting()
    clock.now += 1.0
    assert not outage.waiting()


class Disk:
    """Stands in for `os.write`: takes `room` bytes, a part of the last write too, then is full."""

    def __init__(self, room: float) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, fd: int, data: bytes) -> int:
        size = int(min(len(data), self.room))
        if size == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= size
        return self.write(fd, memoryview(data)[:size])


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("room", [0, 100, 1000, 2500, 3500, 4500, 6000])
def test_a_full_disk_is_survived_wherever_it_strikes(
    path: Path, monkeypatch: pytest.MonkeyPatch, room: int, cut: bool
) -> None:
    """Whatever write is cut short, and if the torn end cannot be cut off either: one warning,
    nothing written twice or lost after recovery.
    """
    if not cut:
        monkeypatch.setattr(os, "ftruncate", lambda fd, size: Disk(0)(fd, b"x"))
    told: list[str] = []
    clock = Clock()
    log = open_log(path, clock=clock, flush_seconds=0.0, on_error=told.append)
    log.append([record(0), skipped(0)])
    disk = Disk(room)
    monkeypatch.setattr(os, "write", disk)
    for step in range(1, 9):
        log.append([record(step), skipped(step)])
        clock.now += 0.3
    assert len(told) == 1
    assert "cannot be written (No space left" in told[0] or "bytes were taken" in told[0]
    disk.room = math.inf
    clock.now += 100.0
    log.append([record(9)])
    assert len(told) == 2
    assert "written again; 0 records were lost" in told[1]
    log.close({})
    assert numbers(path) == list(range(10))
    assert load_run(path).gradients.num_rows == sum(1 + step % 3 for step in range(10))
    assert all(r.gradients for r in load_run(path).records() if isinstance(r, StepRecord))
    assert load_run(path).events == [skipped(step) for step in range(9)]


def test_attempts_are_spaced_and_memory_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full few attempts are made; the oldest steps go and are counted."""
    told: list[str] = []
    clock = Clock()
    monkeypatch.setattr(writer, "HOLD_BYTES", 20_000)
    log = open_log(path, clock=clock, flush_seconds=0.0, on_error=told.append)
    disk = Disk(0)
    tries = 0

    def full(fd: int, data: bytes) -> int:
        nonlocal tries
        tries += 1
        return disk(fd, data)

    monkeypatch.setattr(os, "write", full)
    for step in range(1000):
        log.append([record(step)])
        clock.now += 0.1
    assert tries <= 10
    assert log.lost > 900
    assert len(log._pending) + log.lost == 1000
    disk.room = math.inf
    log.flush()
    assert f"{log.lost} records were lost" in told[1]
    kept = numbers(path)
    assert kept == list(range(log.lost, 1000))
    assert load_run(path).info["lost"] == log.lost


def test_histograms_go_before_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full the oldest histograms are let go first, and no step is lost."""
    clock = Clock()
    some = LayerHistograms(("a", "b"), np.ones((2, BINS), np.int64), np.ones(2))
    monkeypatch.setattr(writer, "HOLD_BYTES", 20 * some.nbytes)
    log = open_log(path, clock=clock, flush_seconds=0.0)
    disk = Disk(0)
    monkeypatch.setattr(os, "write", disk)
    for step in range(50):
        log.append([StepRecord(step, float(step), histograms=some)])
        clock.now += 0.1
    disk.room = math.inf
    log.close({})
    assert log.lost == 0 and numbers(path) == list(range(50))
    kept = set(load_run(path).histograms.column("step").to_pylist())
    assert len(kept) > 5 and kept == set(range(min(kept), 50))


def test_a_log_closed_on_a_full_disk_says_what_was_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing never raises; what waits is counted."""
    told: list[str] = []
    log = open_log(path, on_error=told.append)
    log.append([record(0)])
    log.flush()
    monkeypatch.setattr(os, "write", Disk(0))
    log.append([record(1), record(2), skipped(2)])
    log.close({})
    assert log.lost == 3
    assert "3 records were lost" in told[-1]
    assert len(told) == 2
    assert numbers(path) == [0]


def test_a_directory_that_vanishes_and_comes_back_is_survived(path: Path) -> None:
    """Deleting the run's folder is one warning; once it exists again it is a readable run."""
    told: list[str] = []
    log = open_log(path, on_error=told.append)
    log.append([record(0), skipped(0)])
    log.flush()
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    log.append([record(1), skipped(1)])
    log.flush()
    log.flush()
    assert len(told) == 1
    path.mkdir()
    log.flush()
    assert len(told) == 2
    assert numbers(path) == [1]
    assert load_run(path).events == [skipped(1)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 320 KB."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = tmp_path / "disk"
    place.mkdir()
    if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=320k") != 0:
        pytest.skip("mounting needs root")
    yield place
    libc.umount2(str(place).encode(), 2)


def test_a_disk_that_really_is_full(small_disk: Path) -> None:
    """On a full file system the log goes quiet after one warning and goes on when space comes."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 190_000)
    told: list[str] = []
    path = create_run_directory(small_disk, "run")
    log = open_log(path, on_error=told.append, segment_bytes=20_000)
    names = tuple(map(str, range(50)))
    for step in range(60):
        log.append([record(step, names), skipped(step)])
        log.flush()
    assert len(told) == 1
    ballast.unlink()
    ballast.touch()
    log.flush()
    log.close({})
    assert len(told) == 2
    assert log.lost == 0
    assert numbers(path) == list(range(60))
    assert len(load_run(path).events) == 60
    assert load_run(path).info["status"] == "finished"
