from __future__ import annotations

import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace import exporter as exporter_module
from gradtrace.exporter import Exporter, resolve_exporters
from gradtrace.pipeline.position import Cursor, Position
from gradtrace.pipeline.send import deliver
from gradtrace.pipeline.worker import (
    ExporterWorker,
    Owed,
    close_all,
    growing_pauses,
    unique_names,
)
from gradtrace.records import MOMENT_COLUMNS, LayerTable, Record, RunInfo, RunNote, StepRecord
from gradtrace.records.histograms import BINS, LayerHistograms
from gradtrace.runlog import Backlog, RunLog, create_run_directory
from gradtrace.testing import FailingExporter, HangingExporter, MemoryBacklog, RecordingExporter

SOON = 30.0
"""A bound for failures only: nothing here takes that long."""


def step(number: int) -> StepRecord:
    return StepRecord(step=number, time=0.0)


def note(number: int) -> RunNote:
    return RunNote(step=number, time=0.0, severity="info", message=f"{number}", source="test")


def numbers(exporter: RecordingExporter) -> list[int]:
    return [record.step for record in exporter.steps]


def at_once() -> Iterator[float]:
    return repeat(0.0)


def never() -> Iterator[float]:
    """Pauses that only the end of the trace interrupts."""
    return repeat(3600.0)


def started(exporter: Exporter, **options: Any) -> ExporterWorker:
    worker = ExporterWorker(exporter, **({"pauses": at_once} | options))
    worker.start()
    return worker


def give(worker: ExporterWorker, backlog: MemoryBacklog, *records: Record) -> None:
    """What the background thread does: the log first, then the exporters."""
    backlog.append(records)
    backlog.flush()
    worker.offer(records)


@pytest.fixture
def eager_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# -- the ordinary case ---


def test_records_arrive_once_and_in_order() -> None:
    """Everything offered is exported in the order offered, and the exporter is closed."""
    exporter = RecordingExporter()
    worker = started(exporter)
    records: list[Record] = [r for n in range(1000) for r in (step(n), note(n))]
    for at in range(0, len(records), 7):
        worker.offer(records[at : at + 7])
    assert close_all([worker], SOON) == {"recording": ""}
    assert exporter.records == records
    assert exporter.closed and worker.dropped == 0 and worker.failures == 0


def test_flush_waits_until_all_is_delivered() -> None:
    """True once everything offered before is exported, False when the time is over."""
    exporter = HangingExporter()
    worker = started(exporter)
    worker.offer([step(0)])
    assert not worker.flush(0.01)
    exporter.release()
    assert worker.flush(SOON)
    assert numbers(exporter) == [0]
    close_all([worker], SOON)


class Settling(RecordingExporter):
    """Hands what it gets to somebody who writes it down some seconds later."""

    settling = 2.0


def test_the_cursor_waits_until_records_are_safe(tmp_path: Path) -> None:
    """Before they have settled a killed process owes them; after closing it owes nothing."""
    now = [100.0]
    exporter = Settling()
    worker = started(exporter, run=tmp_path, clock=lambda: now[0])
    cursor = Cursor(tmp_path, exporter.name)
    worker.offer([step(0), step(1)])
    assert worker.flush(SOON)
    now[0] += 1.0
    worker.offer([step(2)])
    assert worker.flush(SOON)
    assert cursor.load() == Position()
    now[0] += 1.5  # the first two are safe now
    worker.offer([step(3)])
    assert worker.flush(SOON)
    while cursor.load() == Position():
        worker.offer([note(0)])
        assert worker.flush(SOON)
    assert cursor.load().step == 2
    assert close_all([worker], SOON) == {"recording": ""}
    assert cursor.load().step == 4


def test_nothing_owed_opens_no_exporter_that_settles(tmp_path: Path) -> None:
    """It would begin something new for nothing; what is owed is stored when it was closed."""
    backlog = MemoryBacklog()
    backlog.append([step(0), note(0)])
    backlog.flush()
    info = RunInfo(name="r", started=0.0, path=tmp_path)
    first, second = Settling(), Settling()
    assert deliver(backlog, info, first).steps == 1 and first.closed
    assert deliver(backlog, info, second).steps == 0 and not second.opened


def test_what_was_not_begun_in_time_is_left_to_others() -> None:
    """After the time for closing is over no further batch is sent: it is owed, as was told."""
    exporter = HangingExporter()
    worker = started(exporter)
    worker.offer([step(n) for n in range(1000)])
    assert exporter.reached.wait(SOON)
    assert close_all([worker], 0.0) == {"hanging": "1,000 steps"}
    exporter.release()
    worker._thread.join(SOON)
    assert exporter.closed
    assert 0 < len(exporter.steps) <= 256


def test_an_exporter_is_given_once() -> None:
    """The same object twice is refused: it would be opened twice and closed once."""
    exporter = RecordingExporter()
    with pytest.raises(ValueError, match="the same RecordingExporter twice"):
        resolve_exporters([exporter, "console", exporter])
    assert len(resolve_exporters([exporter, RecordingExporter()])) == 2


def test_no_thread_is_left() -> None:
    """After closing there are as many threads as before."""
    before = threading.active_count()
    workers = [started(RecordingExporter(), name=f"e{n}") for n in range(5)]
    assert threading.active_count() == before + 5
    close_all(workers, SOON)
    assert threading.active_count() == before


def test_an_exporter_that_was_only_opened_is_closed() -> None:
    """A worker that never started closes its exporter too, when another one failed to open."""
    exporter = RecordingExporter()
    assert close_all([ExporterWorker(exporter)], SOON) == {"recording": ""}
    assert exporter.closed


@pytest.mark.parametrize("options", [{"capacity": 0}, {"max_bytes": 0}, {"patience": -1.0}])
def test_bounds_are_checked(options: dict[str, Any]) -> None:
    """Bounds that make no sense are refused by the constructor."""
    with pytest.raises(ValueError, match=next(iter(options))):
        ExporterWorker(RecordingExporter(), **options)


# -- slow and dead backends ---


def test_a_hanging_exporter_holds_up_nobody() -> None:
    """Offering goes on while one exporter hangs, and another one gets everything."""
    hanging, other = HangingExporter(), RecordingExporter()
    workers = [started(hanging, capacity=10), started(other)]
    for worker in workers:
        worker.offer([step(0)])
    assert hanging.reached.wait(SOON)
    for number in range(1, 1000):
        for worker in workers:
            worker.offer([step(number)])
    assert not hanging.records  # it still hangs: all of the above went past it
    assert other.wait_for_steps(1000, SOON)
    assert numbers(other) == list(range(1000))
    hanging.release()
    close_all(workers, SOON)


def test_retries_send_the_same_batch() -> None:
    """Failed exports are repeated until one works; nothing is missing or doubled."""
    exporter = FailingExporter(3)
    worker = started(exporter)
    worker.offer([step(0), step(1)])
    worker.offer([step(2)])
    assert exporter.wait_for_steps(3, SOON)
    close_all([worker], SOON)
    assert numbers(exporter) == [0, 1, 2] and worker.failures == 3


def test_an_exporter_that_exits_is_one_that_fails() -> None:
    """SystemExit from a backend's library does not end the delivery."""

    class Exiting(RecordingExporter):
        left = 1

        def export(self, records: Sequence[Record]) -> None:
            self.left -= 1
            if self.left >= 0:
                raise SystemExit(1)
            super().export(records)

    exporter = Exiting()
    worker = started(exporter)
    worker.offer([step(0)])
    assert exporter.wait_for_steps(1, SOON)
    close_all([worker], SOON)


def test_pauses_grow_up_to_a_limit() -> None:
    """Half a second, doubling, at most thirty."""
    pauses = growing_pauses()
    assert [next(pauses) for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_each_failure_takes_the_next_pause_and_each_outage_begins_anew() -> None:
    """A pause follows each failed try; after a success the next outage starts with the first."""
    taken: list[int] = []

    def pauses() -> Iterator[float]:
        for number in range(100):
            taken.append(number)
            yield 0.0

    exporter = FailingExporter(3)
    worker = started(exporter, pauses=pauses)
    worker.offer([step(0)])
    assert worker.flush(SOON)
    exporter._failures = exporter.attempts + 2
    worker.offer([step(1)])
    delivered = worker.flush(SOON)
    close_all([worker], SOON)
    assert delivered and taken == [0, 1, 2, 0, 1]


def test_an_outage_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    """One warning however many tries fail, then one message that it works again."""
    caplog.set_level(logging.INFO, logger="gradtrace")
    exporter = FailingExporter(20)
    worker = started(exporter)
    worker.offer([step(0)])
    assert exporter.wait_for_steps(1, SOON)
    close_all([worker], SOON)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "the backend is down" in caplog.text and "works again" in caplog.text


def test_without_a_log_the_oldest_go_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The newest `capacity` records stay, the others are counted, and that is told once."""
    exporter = HangingExporter()
    worker = started(exporter, capacity=5)
    worker.offer([step(0)])
    assert exporter.reached.wait(SOON)
    for number in range(1, 21):
        worker.offer([step(number), note(number)])
    assert worker.dropped == 35
    assert worker.owed == Owed(4, 2) or worker.owed == Owed(3, 3)
    exporter.release()
    assert worker.flush(SOON)
    assert close_all([worker], SOON) == {"hanging": ""}
    assert exporter.records == [step(0), note(18), step(19), note(19), step(20), note(20)]
    assert len(caplog.records) == 1


def test_the_queue_is_bounded_in_bytes() -> None:
    """Large layer tables fill a queue long before `capacity` records do."""
    table = LayerTable(("w",) * 100, np.zeros((100, 6)), MOMENT_COLUMNS)
    exporter = HangingExporter()
    worker = started(exporter, max_bytes=3 * table.values.nbytes)
    worker.offer([step(0)])
    assert exporter.reached.wait(SOON)
    for number in range(1, 11):
        worker.offer([StepRecord(step=number, time=0.0, gradients=table)])
    assert worker.dropped == 7
    exporter.release()
    close_all([worker], SOON)
    assert numbers(exporter) == [0, 8, 9, 10]


def test_histograms_go_before_records() -> None:
    """Where there is no run log, a full queue lets go of the oldest histograms, and of no step."""
    some = LayerHistograms(("w",) * 100, np.ones((100, BINS), np.int64), np.ones(100))
    exporter = HangingExporter()
    worker = started(exporter, max_bytes=4 * some.nbytes)
    worker.offer([step(0)])
    assert exporter.reached.wait(SOON)
    for number in range(1, 21):
        worker.offer([StepRecord(step=number, time=0.0, histograms=some)])
    assert worker.dropped == 0
    exporter.release()
    close_all([worker], SOON)
    assert numbers(exporter) == list(range(21))
    kept = [r.step for r in exporter.steps if r.histograms is not None]
    assert kept and kept == list(range(kept[0], 21)) and kept[0] > 16


# -- catching up from the log ---


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
    assert close_all([worker], SOON) == {"failing": ""}
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
    close_all([worker], SOON)
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
    close_all([worker], SOON)


def test_records_the_log_never_shows_are_counted_and_passed_over() -> None:
    """After `patience` seconds what is missing is dropped, and what comes later is delivered."""
    exporter, backlog = RecordingExporter(), MemoryBacklog()
    worker = started(exporter, backlog=backlog, capacity=1, patience=0.0)
    worker.offer([step(0), step(1), note(0)])
    assert worker.flush(SOON)
    assert worker.dropped == 3 and worker.owed == Owed()
    give(worker, backlog, step(2))
    close_all([worker], SOON)
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
    assert close_all([worker], SOON) == {"failing": ""}


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
    assert close_all([worker], SOON) == {"recording": ""}
    assert numbers(exporter) == [0, 1]


def test_what_the_log_does_not_have_at_the_end_is_owed() -> None:
    """At the close nothing is dropped that `gradtrace send` may still deliver."""
    exporter, backlog = RecordingExporter(), MemoryBacklog()
    worker = started(exporter, backlog=backlog, capacity=1, patience=3600.0)
    worker.offer([step(0), step(1), note(0)])
    assert close_all([worker], SOON) == {"recording": "2 steps and 1 event"}
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
    close_all([worker], SOON)
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
    assert close_all([worker], SOON) == {"moody": ""}
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
    assert close_all([worker], SOON) == {"failing": ""}
    log.close({})
    assert numbers(exporter) == list(range(300))
    assert [event.step for event in exporter.events] == list(range(0, 300, 3))
    assert Cursor(path, "failing").load() == Position(300, 100)


# -- closing ---


def test_closing_waits_no_longer_than_told() -> None:
    """However many exporters hang, the close takes one `timeout`, and says what is owed."""
    exporters = [HangingExporter(f"h{n}") for n in range(4)]
    workers = [started(exporter) for exporter in exporters]
    for worker in workers:
        worker.offer([step(0), step(1), note(0)])
    assert all(exporter.reached.wait(SOON) for exporter in exporters)
    start = time.monotonic()
    owed = close_all(workers, 0.5)
    assert time.monotonic() - start < 0.5 * len(workers)  # not one after the other
    assert owed == {f"h{n}": "2 steps and 1 event" for n in range(4)}
    for exporter, worker in zip(exporters, workers, strict=True):
        exporter.release()
        assert worker.join(SOON)


def test_a_hanging_close_is_left_behind() -> None:
    """An exporter whose `close` never returns does not hold up the end."""
    release = threading.Event()

    class Stuck(RecordingExporter):
        def close(self) -> None:
            release.wait()

    worker = started(Stuck())
    worker.offer([step(0)])
    assert worker.flush(SOON)
    assert close_all([worker], 0.05) == {"recording": "the end of its run"}
    release.set()
    assert worker.join(SOON)


def test_closing_interrupts_the_pause_and_tries_once_more() -> None:
    """A worker that waits to retry does one last try at the close, then gives up."""
    exporter = FailingExporter()
    worker = started(exporter, pauses=never)
    worker.offer([step(0)])
    assert exporter.wait_for_attempts(1, SOON)
    assert close_all([worker], SOON) == {"failing": "1 step"}
    # Two when the first try had not ended as the close began.
    assert exporter.attempts in (2, 3) and exporter.closed


def test_the_last_try_may_work() -> None:
    """What the last try delivers is not owed."""
    exporter = FailingExporter()
    worker = started(exporter, pauses=never)
    worker.offer([step(0)])
    assert exporter.wait_for_attempts(1, SOON)
    exporter.heal()
    assert close_all([worker], SOON) == {"failing": ""}
    assert numbers(exporter) == [0]


def test_a_failing_close_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """An error in an exporter's `close` is logged and counted, nothing else."""

    class Bad(RecordingExporter):
        def close(self) -> None:
            raise OSError("no close")

    worker = started(Bad())
    assert close_all([worker], SOON) == {"recording": ""}
    assert "no close" in caplog.text and worker.failures == 1


def test_offers_after_the_end_are_ignored() -> None:
    """What comes when the thread has ended is neither kept nor owed."""
    exporter = RecordingExporter()
    worker = started(exporter)
    close_all([worker], SOON)
    worker.offer([step(0)])
    assert worker.owed == Owed() and exporter.records == []


# -- cursors and delivery ---


def test_the_cursor_is_stored_while_the_run_pauses(tmp_path: Path) -> None:
    """A killed run knows what was delivered, also when nothing came after the last record."""
    saved = threading.Event()

    class Watched(Cursor):
        def save(self, position: Position) -> None:
            super().save(position)
            if position == Position(2, 1):
                saved.set()

    worker = ExporterWorker(RecordingExporter(), run=tmp_path)
    worker._cursor = Watched(tmp_path, "recording")
    worker.start()
    worker.offer([step(0), note(0), step(1)])
    assert saved.wait(SOON)
    assert Cursor(tmp_path, "recording").load() == Position(2, 1)
    close_all([worker], SOON)


def test_the_cursor_is_stored_at_the_close_and_not_for_each_batch(tmp_path: Path) -> None:
    """Within the throttle nothing is written; the close always writes."""
    saves: list[Position] = []

    class Watched(Cursor):
        def save(self, position: Position) -> None:
            saves.append(position)

    worker = ExporterWorker(RecordingExporter(), run=tmp_path, clock=lambda: 0.0)
    worker._cursor = Watched(tmp_path, "recording")
    worker.start()
    for number in range(50):
        worker.offer([step(number)])
        assert worker.flush(SOON)
    close_all([worker], SOON)
    assert saves == [Position(50, 0)]


def test_a_cursor_file_is_replaced_whole(tmp_path: Path) -> None:
    """Only the finished file remains, under a name that any file system takes."""
    Cursor(tmp_path, "../a b/\N{SNOWMAN}" + "x" * 300).save(Position(3, 4))
    [file] = (tmp_path / "cursors").iterdir()
    assert json.loads(file.read_text()) == {"step": 3, "event": 4}
    assert len(file.name) <= 105 and not file.name.startswith(".")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"step": 1}', '{"step": "x", "event": 0}']
)
def test_a_damaged_cursor_is_the_beginning(tmp_path: Path, text: str) -> None:
    """Doubt means sending again, not missing."""
    (tmp_path / "cursors").mkdir()
    (tmp_path / "cursors" / "e.json").write_text(text)
    assert Cursor(tmp_path, "e").load() == Position()


def test_sending_goes_on_where_the_run_stopped(tmp_path: Path) -> None:
    """A backend dead to the end gets the rest from `deliver`, and a second call sends nothing."""
    exporter, backlog = FailingExporter(name="e"), MemoryBacklog()
    worker = started(exporter, backlog=backlog, run=tmp_path, pauses=never)
    exporter.heal()
    give(worker, backlog, step(0), note(0))
    assert worker.flush(SOON)
    exporter._failures = None
    give(worker, backlog, *(step(n) for n in range(1, 600)), note(1))
    assert close_all([worker], SOON) == {"e": "599 steps and 1 event"}
    later = RecordingExporter("e")
    info = RunInfo(name="run", started=0.0, path=tmp_path)
    sent = deliver(backlog, info, later)
    assert (sent.steps, sent.events) == (599, 1) and later.opened and later.closed
    assert numbers(exporter) + numbers(later) == list(range(600))
    again = deliver(backlog, info, RecordingExporter("e"))
    assert (again.steps, again.events) == (0, 0)


def test_sending_that_fails_can_be_repeated(tmp_path: Path) -> None:
    """After a few tries the error is raised; a later call begins with the batch that failed."""
    backlog = MemoryBacklog()
    backlog.append([step(n) for n in range(10)])
    backlog.flush()
    pauses: list[float] = []
    exporter = FailingExporter(4, name="e")
    info = RunInfo(name="run", started=0.0, path=tmp_path)
    with pytest.raises(ConnectionError):
        deliver(backlog, info, exporter, pause=pauses.append)
    assert pauses == [0.5, 1.0, 2.0] and exporter.closed
    assert deliver(backlog, info, exporter, pause=pauses.append).steps == 10
    assert numbers(exporter) == list(range(10))


# -- forks ---


def in_child(action: Callable[[], bool]) -> bool:
    """Whether the action is true in a forked child, which must end by itself."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if action() else 1
        finally:
            os._exit(code)
    watchdog = threading.Timer(SOON, os.kill, (pid, 9))
    watchdog.start()
    _, status = os.waitpid(pid, 0)
    watchdog.cancel()
    watchdog.join()
    return status == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("locked", [False, True])
def test_a_forked_child_leaves_the_workers_alone(locked: bool) -> None:
    """In a child, even one forked while the lock is held, offers, flush and close do nothing and
    do not hang; the parent goes on.
    """
    exporter = HangingExporter()
    worker = started(exporter)
    worker.offer([step(0)])
    assert exporter.reached.wait(SOON)

    def child() -> bool:
        worker.offer([step(1)])
        return worker.flush(5.0) and close_all([worker], 5.0) == {"hanging": ""}

    if locked:
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with worker._changed:
                held.set()
                done.wait(SOON)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(SOON)
        alive = in_child(child)
        done.set()
        holder.join()
    else:
        alive = in_child(child)
    assert alive
    exporter.release()
    worker.offer([step(1)])
    assert close_all([worker], SOON) == {"hanging": ""}
    assert numbers(exporter) == [0, 1] and exporter.closed


# -- finding exporters ---


def test_exporters_of_one_name_have_cursors_of_their_own() -> None:
    """Names are numbered, never reused, and differ as file names."""

    def names(*given: str) -> list[str]:
        return unique_names([RecordingExporter(name) for name in given])

    assert names("a", "b", "a", "a") == ["a", "b", "a-2", "a-3"]
    assert names("a-2", "a", "a") == ["a-2", "a", "a-3"]
    assert names("a/b", "a_b") == ["a/b", "a_b-2"]
    assert names("A", "a") == ["A", "a-2"]
    long = names("x" * 200, "x" * 200)
    assert Cursor(Path(), long[0])._path != Cursor(Path(), long[1])._path


class WithSettings(RecordingExporter):
    def __init__(self, directory: str) -> None:
        super().__init__(directory)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points: one that works and one whose package is missing."""
    values = {
        "good": "gradtrace.testing:RecordingExporter",
        "missing": "no_such_package_anywhere:Exporter",
    }
    points = [EntryPoint(name, value, exporter_module.GROUP) for name, value in values.items()]
    monkeypatch.setattr(exporter_module, "entry_points", lambda group: points)


@pytest.mark.usefixtures("installed")
def test_names_become_exporters_and_objects_stay() -> None:
    """A name gives a new exporter with defaults, an object is used as it is."""
    own = HangingExporter()
    found = resolve_exporters(["good", own])
    assert isinstance(found[0], RecordingExporter) and found[1] is own


@pytest.mark.usefixtures("installed")
def test_an_unknown_name_is_told_with_those_there_are() -> None:
    """The message has what was given and what could have been."""
    with pytest.raises(ValueError, match=r"'goood'.*'good', 'missing'"):
        resolve_exporters(["goood"])


@pytest.mark.usefixtures("installed")
def test_a_missing_package_is_told_with_the_command_that_installs_it() -> None:
    """The ImportError names the extra."""
    with pytest.raises(ImportError, match=r'pip install "gradtrace\[missing\]"') as caught:
        resolve_exporters(["missing"])
    assert caught.value.name == "no_such_package_anywhere"


def test_an_exporter_that_needs_settings_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose exporter has settings without default asks for an object."""
    point = EntryPoint("s", "any:thing", exporter_module.GROUP)
    monkeypatch.setattr(exporter_module, "entry_points", lambda group: [point])
    monkeypatch.setattr(EntryPoint, "load", lambda self: WithSettings)
    with pytest.raises(TypeError, match=r"'directory'.*WithSettings\(\.\.\.\)"):
        resolve_exporters(["s"])


class NoClose:
    name = "x"

    def open(self, run: RunInfo) -> None: ...

    def export(self, records: Sequence[Record]) -> None: ...


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("console", "brackets"),
        (3, "int"),
        ([NoClose()], "NoClose.*lacks close"),
        ([object()], "lacks name, open, export, close"),
        ([RecordingExporter], "class RecordingExporter"),
        ([RecordingExporter("")], "name"),
    ],
)
def test_what_is_no_exporter_is_refused(given: Any, told: str) -> None:
    """A TypeError says what was given and what it lacks."""
    with pytest.raises(TypeError, match=told):
        resolve_exporters(given)
