"""A worker that fell behind reads the run log, and goes live again without loss or doubles."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from deliveries import SOON, ended, give, note, numbers, started, step

from gradtrace.pipeline.position import Cursor, Position
from gradtrace.pipeline.queue import Owed
from gradtrace.records import Record, RunInfo, StepRecord
from gradtrace.runlog.backlog import Backlog
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.writer import RunLog
from gradtrace.testing import FailingExporter, MemoryBacklog, RecordingExporter


@pytest.fixture
def eager_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_an_outage_longer_than_the_queue_loses_nothing() -> None:
    """With a log, a dead backend gets everything once it answers, in order and once."""
    exporter, backlog = FailingExporter(), MemoryBacklog()
    worker = started(exporter, backlog=backlog, capacity=3)
    for number in range(700):
        give(worker, backlog, step(number), note(number))
    assert exporter.wait_for_attempts(3, SOON) and not exporter.records
    exporter.heal()
    assert worker.flush(SOON)
    give(worker, backlog, step(700))
    assert ended(worker) == ""
    assert numbers(exporter) == list(range(701))
    assert exporter.events == [note(n) for n in range(700)] and worker.dropped == 0


def test_what_is_on_disk_before_it_is_offered_is_not_doubled() -> None:
    """The log may show a record a moment before the queue gets it."""
    exporter, backlog = FailingExporter(), MemoryBacklog()
    worker = started(exporter, backlog=backlog, capacity=2)
    for number in range(5):
        give(worker, backlog, step(number), note(number))
    backlog.append([step(5), note(5)])
    backlog.flush()
    exporter.heal()
    assert worker.flush(SOON)
    worker.offer([step(5), note(5)])
    ended(worker)
    assert numbers(exporter) == list(range(6)) and exporter.events == [note(n) for n in range(6)]


def test_catching_up_waits_for_what_is_not_on_disk_yet() -> None:
    """Records offered but not flushed are waited for, not skipped."""
    read = threading.Event()

    class Watched(MemoryBacklog):
        def read_since(self, *args: Any, **options: Any) -> tuple[list[Record], int, int]:
            found = super().read_since(*args, **options)
            if not found[0]:
                read.set()
            return found

    exporter, backlog = RecordingExporter(), Watched()
    worker = started(exporter, backlog=backlog, capacity=1)
    records = [step(n) for n in range(10)]
    backlog.append(records)
    worker.offer(records)
    assert read.wait(SOON)
    assert not exporter.records and worker.owed == Owed(10, 0)
    backlog.flush()
    assert worker.flush(SOON)
    assert numbers(exporter) == list(range(10)) and worker.dropped == 0
    ended(worker)


def test_records_the_log_never_shows_are_counted_and_passed_over() -> None:
    """After `patience` seconds what is missing is dropped, and what comes later is delivered."""
    exporter, backlog = RecordingExporter(), MemoryBacklog()
    worker = started(exporter, backlog=backlog, capacity=1, patience=0.0)
    worker.offer([step(0), step(1), note(0)])
    assert worker.flush(SOON)
    assert worker.dropped == 3 and worker.owed == Owed()
    give(worker, backlog, step(2))
    ended(worker)
    assert numbers(exporter) == [2]


def test_steps_thinned_from_the_log_are_counted() -> None:
    """Holes in the log are not waited for, and show as dropped."""
    exporter, backlog = FailingExporter(), MemoryBacklog()
    worker = started(exporter, backlog=backlog, capacity=1, patience=3600.0)
    give(worker, backlog, step(0))
    assert exporter.wait_for_attempts(1, SOON)
    give(worker, backlog, *(step(n) for n in range(1, 10)))
    backlog.lose(3, 4, 7)
    exporter.heal()
    assert worker.flush(SOON)
    assert numbers(exporter) == [0, 1, 2, 5, 6, 8, 9] and worker.dropped == 3
    assert ended(worker) == ""


def test_what_is_flushed_just_before_closing_is_delivered() -> None:
    """A log read just before its last flush is read once more before the worker gives up."""
    reading, go_on = threading.Event(), threading.Event()

    class Slow(MemoryBacklog):
        empty = 0

        def read_since(self, *args: Any, **options: Any) -> tuple[list[Record], int, int]:
            found = super().read_since(*args, **options)
            self.empty += not found[0]
            if self.empty == 2:  # the first one only marks where the queue begins
                reading.set()
                go_on.wait(SOON)
            return found

    exporter, backlog = RecordingExporter(), Slow()
    worker = started(exporter, backlog=backlog, capacity=1)
    backlog.append([step(0), step(1)])
    worker.offer([step(0), step(1)])
    assert reading.wait(SOON)
    backlog.flush()
    worker.begin_close()
    go_on.set()
    assert ended(worker) == ""
    assert numbers(exporter) == [0, 1]


def test_what_the_log_does_not_have_at_the_end_is_owed() -> None:
    """At the close nothing is dropped that `gradtrace send` may still deliver."""
    exporter, backlog = RecordingExporter(), MemoryBacklog()
    worker = started(exporter, backlog=backlog, capacity=1, patience=3600.0)
    worker.offer([step(0), step(1), note(0)])
    assert ended(worker) == "2 steps and 1 event"
    assert worker.dropped == 0 and exporter.closed


def test_a_log_that_cannot_be_read_is_told_and_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error of the log is counted, told once, and costs nothing when it passes."""

    class Broken(MemoryBacklog):
        left = 3

        def read_since(self, *args: Any, **options: Any) -> tuple[list[Record], int, int]:
            self.left -= 1
            if self.left >= 0:
                raise RuntimeError("unreadable")
            return super().read_since(*args, **options)

    exporter, backlog = RecordingExporter(), Broken()
    worker = started(exporter, backlog=backlog, capacity=1)
    give(worker, backlog, step(0), step(1))
    assert worker.flush(SOON)
    ended(worker)
    assert numbers(exporter) == [0, 1] and worker.failures == 3
    assert caplog.text.count("unreadable") == 1


class Moody(RecordingExporter):
    """Fails at random, and now and then for long."""

    def __init__(self, seed: int) -> None:
        super().__init__("moody")
        self._random = random.Random(seed)
        self._bad = 0

    def export(self, records: Sequence[Record]) -> None:
        if self._bad == 0 and self._random.random() < 0.3:
            self._bad = self._random.choice([1, 2, 50])
        if self._bad:
            self._bad -= 1
            raise ConnectionError("not now")
        super().export(records)


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("seed", range(40))
def test_random_outages_lose_and_double_nothing(seed: int) -> None:
    """Whatever the order of offers, flushes, failures and catching up: all of it, once, in order
    of steps and in order of events.
    """
    rng = random.Random(seed)
    exporter, backlog = Moody(seed), MemoryBacklog()
    worker = started(exporter, backlog=backlog, capacity=rng.choice([1, 3, 10]))
    number, notes = 0, 0
    for _ in range(150):
        records: list[Record] = []
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.7:
                number += rng.choice([1, 1, 1, 3])  # steps may be missing from the start
                records.append(step(number))
            else:
                records.append(note(notes))
                notes += 1
        backlog.append(records)
        if rng.random() < 0.5:
            backlog.flush()
        worker.offer(records)
    expected = [
        record.step
        for record in [*backlog._shown, *backlog._pending]
        if isinstance(record, StepRecord)
    ]
    backlog.flush()
    assert worker.flush(SOON)
    exporter._random = random.Random(1)
    exporter._random.random = lambda: 1.0  # type: ignore[method-assign]
    assert ended(worker) == ""
    assert numbers(exporter) == expected
    assert exporter.events == [note(n) for n in range(notes)]
    assert worker.dropped == 0 and worker.owed == Owed()


def test_catching_up_works_from_a_run_log_on_disk(tmp_path: Path) -> None:
    """The same with the real log: an outage longer than the queue, then live again."""
    path = create_run_directory(tmp_path, "run")
    log = RunLog(path, RunInfo(name="run", started=0.0, path=path), flush_seconds=0.0)
    exporter = FailingExporter()
    worker = started(exporter, backlog=Backlog(path), run=path, capacity=4)
    for number in range(300):
        records: list[Record] = [step(number), *([note(number)] if number % 3 == 0 else [])]
        log.append(records)
        worker.offer(records)
        if number == 200:
            exporter.heal()
    log.flush()
    assert worker.flush(SOON)
    assert ended(worker) == ""
    log.close({})
    assert numbers(exporter) == list(range(300))
    assert [event.step for event in exporter.events] == list(range(0, 300, 3))
    assert Cursor(path, "failing").load() == Position(300, 100)
