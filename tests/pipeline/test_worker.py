"""One exporter's thread: delivery, outages, the end, forks."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deliveries import SOON, Settling, ended, never, note, numbers, started, step

from gradtrace.pipeline.adapter import Adapter
from gradtrace.pipeline.position import Cursor, Position
from gradtrace.pipeline.queue import Owed
from gradtrace.pipeline.worker import ExporterWorker, growing_pauses
from gradtrace.records import MOMENT_COLUMNS, LayerTable, Record, StepRecord
from gradtrace.records.histograms import BINS, LayerHistograms
from gradtrace.testing import FailingExporter, HangingExporter, RecordingExporter


def test_records_arrive_once_and_in_order() -> None:
    """Everything offered is exported in the order offered, and the exporter is closed."""
    exporter = RecordingExporter()
    worker = started(exporter)
    records: list[Record] = [r for n in range(1000) for r in (step(n), note(n))]
    for at in range(0, len(records), 7):
        worker.offer(records[at : at + 7])
    assert ended(worker) == ""
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
    ended(worker)


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
    assert ended(worker) == ""
    assert cursor.load().step == 4


def test_what_was_not_begun_in_time_is_left_to_others() -> None:
    """After the time for closing is over no further batch is sent: it is owed, as was told."""
    exporter = HangingExporter()
    worker = started(exporter)
    worker.offer([step(n) for n in range(1000)])
    assert exporter.reached.wait(SOON)
    assert ended(worker, 0.0) == "1,000 steps"
    exporter.release()
    worker._thread.join(SOON)
    assert exporter.closed
    assert 0 < len(exporter.steps) <= 256


@pytest.mark.parametrize("options", [{"capacity": 0}, {"max_bytes": 0}, {"patience": -1.0}])
def test_bounds_are_checked(options: dict[str, Any]) -> None:
    """Bounds that make no sense are refused by the constructor."""
    with pytest.raises(ValueError, match=next(iter(options))):
        ExporterWorker(Adapter(RecordingExporter()), **options)


# -- slow and dead backends ---


def test_retries_send_the_same_batch() -> None:
    """Failed exports are repeated until one works; nothing is missing or doubled."""
    exporter = FailingExporter(3)
    worker = started(exporter)
    worker.offer([step(0), step(1)])
    worker.offer([step(2)])
    assert exporter.wait_for_steps(3, SOON)
    ended(worker)
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
    ended(worker)


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
    ended(worker)
    assert delivered and taken == [0, 1, 2, 0, 1]


def test_an_outage_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    """One warning however many tries fail, then one message that it works again."""
    caplog.set_level(logging.INFO, logger="gradtrace")
    exporter = FailingExporter(20)
    worker = started(exporter)
    worker.offer([step(0)])
    assert exporter.wait_for_steps(1, SOON)
    ended(worker)
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
    assert ended(worker) == ""
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
    ended(worker)
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
    ended(worker)
    assert numbers(exporter) == list(range(21))
    kept = [r.step for r in exporter.steps if r.histograms is not None]
    assert kept and kept == list(range(kept[0], 21)) and kept[0] > 16


# -- closing ---


def test_a_hanging_close_is_left_behind() -> None:
    """An exporter whose `close` never returns does not hold up the end."""
    release = threading.Event()

    class Stuck(RecordingExporter):
        def close(self) -> None:
            release.wait()

    worker = started(Stuck())
    worker.offer([step(0)])
    assert worker.flush(SOON)
    assert ended(worker, 0.05) == "the end of its run"
    release.set()
    assert worker.join(SOON)


def test_closing_interrupts_the_pause_and_tries_once_more() -> None:
    """A worker that waits to retry does one last try at the close, then gives up."""
    exporter = FailingExporter()
    worker = started(exporter, pauses=never)
    worker.offer([step(0)])
    assert exporter.wait_for_attempts(1, SOON)
    assert ended(worker) == "1 step"
    # Two when the first try had not ended as the close began.
    assert exporter.attempts in (2, 3) and exporter.closed


def test_the_last_try_may_work() -> None:
    """What the last try delivers is not owed."""
    exporter = FailingExporter()
    worker = started(exporter, pauses=never)
    worker.offer([step(0)])
    assert exporter.wait_for_attempts(1, SOON)
    exporter.heal()
    assert ended(worker) == ""
    assert numbers(exporter) == [0]


def test_a_failing_close_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """An error in an exporter's `close` is logged and counted, nothing else."""

    class Bad(RecordingExporter):
        def close(self) -> None:
            raise OSError("no close")

    worker = started(Bad())
    assert ended(worker) == ""
    assert "no close" in caplog.text and worker.failures == 1


def test_offers_after_the_end_are_ignored() -> None:
    """What comes when the thread has ended is neither kept nor owed."""
    exporter = RecordingExporter()
    worker = started(exporter)
    ended(worker)
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

    worker = started(RecordingExporter(), cursor=Watched(tmp_path, "recording"))
    worker.offer([step(0), note(0), step(1)])
    assert saved.wait(SOON)
    assert Cursor(tmp_path, "recording").load() == Position(2, 1)
    ended(worker)


def test_the_cursor_is_stored_at_the_close_and_not_for_each_batch(tmp_path: Path) -> None:
    """Within the throttle nothing is written; the close always writes."""
    saves: list[Position] = []

    class Watched(Cursor):
        def save(self, position: Position) -> None:
            saves.append(position)

    cursor = Watched(tmp_path, "recording")
    worker = started(RecordingExporter(), cursor=cursor, clock=lambda: 0.0)
    for number in range(50):
        worker.offer([step(number)])
        assert worker.flush(SOON)
    ended(worker)
    assert saves == [Position(50, 0)]


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
        return worker.flush(5.0) and ended(worker, 5.0) == ""

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
    assert ended(worker) == ""
    assert numbers(exporter) == [0, 1] and exporter.closed
