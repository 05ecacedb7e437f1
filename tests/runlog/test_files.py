"""The files of a run as they are written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from small_runs import record

from gradtrace.runlog.files import EventFile, TableFile
from gradtrace.runlog.schema import STEPS, steps_batch
from gradtrace.runlog.segments import SegmentReader, first_step, segments
from gradtrace.runlog.thinning import Segment


def steps_in(directory: Path) -> list[list[int]]:
    """The steps of each segment."""
    batches = [SegmentReader(path, STEPS).poll() for _, path in segments(directory, STEPS)]
    return [[] if batch is None else batch.column("step").to_pylist() for batch in batches]


def write(file: TableFile, *steps: int) -> None:
    file.write(steps_batch([record(step) for step in steps]), steps[0], steps[-1])


def test_each_batch_is_readable_as_soon_as_it_is_written(tmp_path: Path) -> None:
    """Nothing waits in a buffer: a reader sees a batch when `write` has returned."""
    file = TableFile(tmp_path, STEPS, 10**6, lambda segment: None)
    for step in range(4):
        write(file, step)
        assert steps_in(tmp_path) == [list(range(step + 1))]
    assert file.size == (tmp_path / "steps-000000.arrows").stat().st_size


def test_a_segment_ends_at_its_limit_and_is_told(tmp_path: Path) -> None:
    """A full segment is sealed with its first and last step; the next has the next number."""
    sealed: list[Segment] = []
    file = TableFile(tmp_path, STEPS, 1, sealed.append)
    write(file, 3, 4)
    write(file, 7)
    assert steps_in(tmp_path) == [[3, 4], [7]]
    assert [(one.first_step, one.last_step) for one in sealed] == [(3, 4), (7, 7)]
    assert all(one.size == one.path.stat().st_size for one in sealed)
    assert [first_step(path) for _, path in segments(tmp_path, STEPS)] == [3, 7]
    assert file.size == 0


def test_a_batch_that_fails_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file ends before it, and the batch can be written again, to the next segment."""
    file = TableFile(tmp_path, STEPS, 10**6, lambda segment: None)
    write(file, 0)
    real = os.write
    taken: list[int] = []
    sound = file.size

    def half(fd: int, data: memoryview) -> int:
        if taken:
            raise OSError(errno.ENOSPC, "No space left")
        taken.append(len(data) // 2)
        return real(fd, data[: taken[0]])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left"):
            write(file, 1)
    assert taken and (tmp_path / "steps-000000.arrows").stat().st_size == sound
    assert steps_in(tmp_path) == [[0]]
    write(file, 1)
    assert steps_in(tmp_path) == [[0], [1]]


def test_a_file_deleted_meanwhile_is_begun_anew(tmp_path: Path) -> None:
    """Writing into a file without a name would seem to work and be lost."""
    table = TableFile(tmp_path, STEPS, 10**6, lambda segment: None)
    events = EventFile(tmp_path / "events.jsonl")
    write(table, 0)
    events.write(b"one\n")
    for path in tmp_path.iterdir():
        path.unlink()
    write(table, 1)
    events.write(b"two\n")
    assert steps_in(tmp_path) == [[1]]
    assert (tmp_path / "events.jsonl").read_bytes() == b"two\n"


def test_a_torn_event_line_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of which the disk took a part raises; the next one begins on a line of its own."""
    file = EventFile(tmp_path / "events.jsonl")
    file.write(b"first\n")
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
        with pytest.raises(OSError, match="only 3 of 7 bytes"):
            file.write(b"second\n")
    file.write(b"second\n")
    file.close()
    assert (tmp_path / "events.jsonl").read_bytes() == b"first\nsec\nsecond\n"
    assert file.size == len(b"first\nsec\nsecond\n")
