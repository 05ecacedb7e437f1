"""Records read back in order, also while the run is being written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_runs import new_log, note, record, skipped, write

from gradtrace.records import Record
from gradtrace.runlog import segments
from gradtrace.runlog.backlog import Backlog
from gradtrace.runlog.reader import load_run
from gradtrace.runlog.thinning import Segment, thin_segment


def test_a_backlog_delivers_everything_once_in_small_parts(tmp_path: Path) -> None:
    """Reading in parts of three gives the same records as reading at once."""
    log = new_log(tmp_path, segment_bytes=6000)
    for step in range(20):
        log.append([record(step), *([skipped(step)] if step % 4 == 0 else [])])
        log.flush()
    log.close({})
    backlog = Backlog(log.path)
    found: list[Record] = []
    step = event = 0
    while True:
        records, step, event = backlog.read_since(step, event, 3)
        assert len(records) <= 3
        if not records:
            break
        found += records
    assert found == list(load_run(log.path).records())
    assert (step, event) == (20, 5)


def test_a_backlog_follows_a_run_that_goes_on(tmp_path: Path) -> None:
    """Each call gives what was flushed since, over rotations and growing names."""
    log = new_log(tmp_path, segment_bytes=6000)
    backlog = Backlog(log.path)
    step = event = 0
    for number in range(15):
        assert backlog.read_since(step, event, 10) == ([], step, event)
        write(log, number)
        records, step, event = backlog.read_since(step, event, 10)
        assert records == [record(number)]


def test_events_wait_for_their_step_but_not_for_ever(tmp_path: Path) -> None:
    """An event is held back until its step is on disk, asked for with `final`, or the run ends;
    a note is not.
    """
    log = new_log(tmp_path)
    backlog = Backlog(log.path)
    log.append([note(5), record(0), skipped(0), skipped(7)])
    assert backlog.read_since(0, 0, 10) == ([note(5)], 0, 1)
    log.flush()
    assert backlog.read_since(0, 1, 10) == ([record(0), skipped(0)], 1, 2)
    assert backlog.read_since(1, 2, 10) == ([], 1, 2)
    assert backlog.read_since(1, 2, 10, final=True) == ([skipped(7)], 1, 3)
    log.close({})
    assert backlog.read_since(1, 2, 10) == ([skipped(7)], 1, 3)


def test_a_backlog_can_be_asked_again_from_an_earlier_point(tmp_path: Path) -> None:
    """A part that was not delivered after all can be read again."""
    log = new_log(tmp_path)
    write(log, 0, 1, 2)
    log.append([skipped(0), skipped(1)])
    backlog = Backlog(log.path)
    first = backlog.read_since(0, 0, 3)
    assert first[1:] == (2, 1)
    assert backlog.read_since(0, 0, 3) == first
    assert backlog.read_since(2, 1, 9)[0] == [skipped(1), record(2)]


@pytest.mark.parametrize("segment_bytes", [1, 10**6])
def test_a_backlog_reads_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    """Segments before the wanted step are not read, and nothing is read twice."""
    log = new_log(tmp_path, segment_bytes=segment_bytes)
    write(log, *range(50))
    total = sum(file.stat().st_size for file in log.path.glob("*.arrows"))
    read = 0
    real = segments.SegmentReader._read

    def count(self: segments.SegmentReader) -> bytes:
        nonlocal read
        data = real(self)
        read += len(data)
        return data

    monkeypatch.setattr(segments.SegmentReader, "_read", count)
    backlog = Backlog(log.path)
    records, step, event = backlog.read_since(45, 0, 100)
    assert [item.step for item in records] == [45, 46, 47, 48, 49]
    assert read < total / 5 or segment_bytes > 1
    read = 0
    write(log, 50)
    records, step, event = backlog.read_since(step, event, 100)
    assert records == [record(50)]
    assert read < total / 20


def test_a_segment_replaced_while_followed_gives_nothing_twice(tmp_path: Path) -> None:
    """Thinning may replace the file a backlog stands in; it goes on with what is left after what
    it has read.
    """
    log = new_log(tmp_path)
    write(log, *range(5))
    backlog = Backlog(log.path)
    assert backlog.read_since(0, 0, 5)[1] == 5
    write(log, *range(5, 21))
    log.close({})
    for table in ("steps", "gradients"):
        segment = Segment(table, log.path / f"{table}-000000.arrows", 0, 20, 10**6)
        assert thin_segment(segment, 10, np.array([], np.int64))
    assert backlog.read_since(5, 0, 9) == ([record(10), record(20)], 21, 0)
    assert backlog.read_since(21, 0, 9) == ([], 21, 0)
