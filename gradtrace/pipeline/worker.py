"""One bounded queue and one daemon thread per exporter.

A slow or dead backend costs its own records at most, and with a run log not even those: when the
queue is full it is emptied and the exporter catches up from the log once the backend answers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gradtrace.exporter import Exporter, Hurried
from gradtrace.pipeline.position import Cursor, Position, safe_name
from gradtrace.pipeline.redact import redacted
from gradtrace.records import Record, StepRecord, table_bytes, without_histograms

logger = logging.getLogger("gradtrace")

CAPACITY = 4096
MAX_BYTES = 64 << 20
BATCH = 256
CURSOR_EVERY = 0.2
POLL = 0.1
PATIENCE = 10.0
"""Seconds to wait for records that were offered but do not appear in the log."""


class Backlog(Protocol):
    """Where an exporter that fell behind reads what it missed."""

    def read_since(
        self, step: int, event: int, limit: int, *, final: bool = False
    ) -> tuple[list[Record], int, int]:
        """Records after a position, in order, and the position after them.

        `step` is the first step number not delivered yet, `event` how many events were. `final`
        asks also for what waits for something that may never come.
        """


@dataclass(frozen=True, slots=True)
class Owed:
    """How many records were offered and neither delivered nor dropped."""

    steps: int = 0
    events: int = 0

    def __str__(self) -> str:
        """In words: "3 steps and 1 event"; empty for none."""
        counts = ((self.steps, "step"), (self.events, "event"))
        return " and ".join(f"{n:,} {noun}{'s' if n > 1 else ''}" for n, noun in counts if n > 0)


def growing_pauses() -> Iterator[float]:
    """Seconds between retries: 0.5, 1, 2, ... 30, 30, ..."""
    pause = 0.5
    while True:
        yield pause
        pause = min(30.0, pause * 2)


class ExporterWorker:
    """Delivers records to one exporter, in order, each once.

    `name` tells exporters of one kind apart. `capacity` and `max_bytes` (of layer tables) bound the
    queue; with a `backlog` a full queue loses nothing, without one the oldest go and are counted
    in `dropped`, as is what the log does not show within `patience` seconds. `failures` counts
    exports that raised. Costs the offering thread about 5 us a call and 1 us a record.

    Raises ValueError for bounds that are not positive.
    """

    def __init__(
        self,
        exporter: Exporter,
        *,
        name: str | None = None,
        backlog: Backlog | None = None,
        run: Path | None = None,
        capacity: int = CAPACITY,
        max_bytes: int = MAX_BYTES,
        pauses: Callable[[], Iterator[float]] = growing_pauses,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if capacity < 1 or max_bytes < 1 or not patience >= 0:
            raise ValueError(
                f"got capacity={capacity}, max_bytes={max_bytes}, patience={patience}; expected at "
                "least one record, one byte and no negative time"
            )
        self.name = name or exporter.name
        self.dropped = 0
        self.failures = 0
        self.exporter = exporter
        self._backlog = backlog
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._pauses = pauses
        self._patience = patience
        self._clock = clock
        self._cursor = Cursor(run, self.name)
        self._saved = (Position(), clock())
        self._settling = float(getattr(exporter, "settling", 0.0))
        self._safe = Position()
        self._unsettled: deque[tuple[float, Position]] = deque()
        self._told: set[str] = set()

        self._changed = threading.Condition()
        # All below changes under the lock. Delivered lies before _done, the queue after _head.
        self._done = Position()
        self._head = Position()
        self._offered = Position()
        self._owed = Owed()
        self._queue: deque[Record] = deque()
        self._bytes = 0
        self._queueing = True
        self._behind = False
        self._closing = False
        self._left = False
        self._ended = False
        self._inert = False
        self._thread = threading.Thread(
            target=self._run, name=f"gradtrace-export-{self.name}", daemon=True
        )
        _workers.add(self)

    def start(self) -> None:
        """Starts the thread; the exporter has been opened."""
        self._thread.start()

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    @property
    def active(self) -> bool:
        """Whether its trace goes on, or waits for its end."""
        over = self.started and not self._thread.is_alive()
        return not (over or self._left or self._inert)

    def offer(self, records: Sequence[Record]) -> None:
        """Takes records in order; never waits for the backend and never raises. Any one thread."""
        if self._inert or not records:
            return
        with self._changed:
            if self._ended:
                return
            before, self._offered = self._offered, after(self._offered, records)
            events = self._offered.event - before.event
            self._owed = Owed(self._owed.steps + len(records) - events, self._owed.events + events)
            lost = 0
            if self._queueing:
                self._queue.extend(records)
                self._bytes += sum(map(_size, records))
                if len(self._queue) > self._capacity or self._bytes > self._max_bytes:
                    lost = self._make_room()
            self._changed.notify_all()
        if lost:
            self._tell("loses records, the oldest first: there is no run log to catch up from")

    def flush(self, timeout: float) -> bool:
        """Waits until everything offered so far is delivered; False after `timeout` seconds."""
        with self._changed:
            goal = self._offered
            self._changed.wait_for(
                lambda: _reached(self._done, goal) or not self._thread.is_alive(), timeout
            )
            return self._inert or _reached(self._done, goal)

    @property
    def owed(self) -> Owed:
        """What was offered and neither delivered nor dropped."""
        with self._changed:
            return self._owed

    def begin_close(self) -> None:
        """Asks the thread to deliver what is left, without pauses, and to close the exporter.

        What was offered is on disk by now, if the disk takes it.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if not self.started and not self._inert:
            # An exporter that was opened is closed, and on this thread, where it may hang.
            with contextlib.suppress(RuntimeError):  # the interpreter is ending
                self._thread.start()

    def join(self, timeout: float) -> bool:
        """Waits for the thread; False if it is still busy and was left to itself."""
        if self.started and not self._inert:
            self._thread.join(max(0.0, timeout))
            if self._thread.is_alive() and isinstance(self.exporter, Hurried):
                self.exporter.hurry()
                self._thread.join(0.5)
        # What it has not begun to send by now is owed: it may be sent by another process.
        self._left = self._thread.is_alive()
        return not self._left

    # -- the queue, under the lock ---

    def _make_room(self) -> int:
        """Empties the queue in favour of the log, or drops the oldest; how many were lost."""
        if self._backlog is not None:
            self._queue.clear()
            self._bytes = 0
            self._queueing, self._behind = False, True
            return 0
        if self._bytes > self._max_bytes:
            self._thin_out()
        lost: list[Record] = []
        while len(self._queue) > self._capacity or (
            self._bytes > self._max_bytes and len(self._queue) > 1
        ):
            lost.append(self._queue.popleft())
            self._bytes -= _size(lost[-1])
        self._head = after(self._head, lost)
        self._settle(lost)
        self.dropped += len(lost)
        return len(lost)

    def _thin_out(self) -> None:
        """Lets go of the oldest histograms, before whole records have to go."""
        slim: deque[Record] = deque()
        for record in self._queue:
            if isinstance(record, StepRecord) and self._bytes > self._max_bytes * 0.75:
                record, saved = without_histograms(record)
                self._bytes -= saved
            slim.append(record)
        self._queue = slim

    def _take(self) -> list[Record]:
        records = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        self._bytes -= sum(map(_size, records))
        self._head = after(self._head, records)
        return records

    def _settle(self, records: Sequence[Record]) -> None:
        events = after(Position(), records).event
        self._owed = Owed(self._owed.steps - len(records) + events, self._owed.events - events)

    def _go_live(self) -> int:
        """Ends the catching up; what lies before the queue and was not found is lost."""
        events = after(Position(), self._queue).event
        queued = Owed(len(self._queue) - events, events)
        lost = self._owed.steps + self._owed.events - queued.steps - queued.events
        self._owed = queued
        self._behind = False
        self.dropped += lost
        return lost

    # -- the exporter's own thread ---

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            records, position = batch
            if records and not self._deliver(records):
                break
            with self._changed:
                self._settle(records)
                self._done = position
                self._changed.notify_all()
            if self._settling and records:
                self._unsettled.append((self._clock(), position))
            self._save_cursor()
            if self._left:
                break
        with self._changed:
            self._ended = True
            self._queue.clear()
            self._changed.notify_all()
        self._save_cursor(at_once=True)
        try:
            self.exporter.close()
        except (Exception, SystemExit) as error:
            self.failures += 1
            logger.warning("exporter %s failed to close: %s", self.name, redacted(repr(error)))
        else:
            self._settling = 0.0
            self._save_cursor(at_once=True)

    def _next_batch(self) -> tuple[list[Record], Position] | None:
        """The next records and the position after them; None when there is nothing left to do."""
        with self._changed:
            idle = None if self._done == self._saved[0] else max(CURSOR_EVERY, self._settling / 4)
            if not self._changed.wait_for(
                lambda: self._queue or self._behind or self._closing, idle
            ):
                return [], self._done  # a pause in the run is a good time to store the cursor
            if not self._behind:
                return (self._take(), self._head) if self._queue else None
        return self._from_backlog()

    def _from_backlog(self) -> tuple[list[Record], Position] | None:
        give_up = self._clock() + self._patience
        while True:
            # Asked before reading: what was on disk when the end was announced is then seen.
            closing = self._closing
            final = closing or self._clock() >= give_up
            records, position = self._read_backlog(final)
            with self._changed:
                goal = self._head if self._queueing else self._offered
                wanted = _before(goal, self._done, records)
                if wanted:
                    whole = len(wanted) == len(records)
                    return wanted, position if whole else after(self._done, wanted)
                caught_up = self._queueing
                if not caught_up:
                    # The queue is complete from here on, so this is how far the log is needed.
                    self._queueing, self._head = True, self._offered
                if _reached(self._done, self._head) or (caught_up and final and not closing):
                    lost, goal = self._go_live(), self._head
                    break
                if caught_up and closing:
                    return None  # still owed: the log may get it yet, and then it can be sent
                if caught_up:
                    self._changed.wait(POLL)  # offered, but not on disk yet
        if lost:
            self._tell("loses records: they are not, or no longer, in the run log")
        return [], goal

    def _read_backlog(self, final: bool) -> tuple[list[Record], Position]:
        assert self._backlog is not None
        done = self._done
        try:
            records, step, event = self._backlog.read_since(
                done.step, done.event, BATCH, final=final
            )
        except Exception as error:
            self.failures += 1
            self._tell(f"cannot read the run log: {error!r}")
            return [], done
        return records, Position(step, event)

    def _deliver(self, records: list[Record]) -> bool:
        """Exports with retries; False when the trace ends before the backend answers."""
        failing = False
        pause, pauses = 0.0, self._pauses()
        while True:
            last = self._closing
            try:
                self.exporter.export(records)
            except (Exception, SystemExit) as error:  # some libraries exit where they should raise
                self.failures += 1
                if not failing:
                    failing = True
                    logger.warning(
                        "exporter %s fails, and is tried again: %s: %s",
                        self.name,
                        type(error).__name__,
                        redacted(str(error)),
                    )
                if last:
                    return False
                pause = next(pauses, pause)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, pause)
            else:
                if failing:
                    logger.info("exporter %s works again", self.name)
                return True

    def _tell(self, trouble: str) -> None:
        """Warns, the same trouble once."""
        if trouble not in self._told and len(self._told) < 10:
            self._told.add(trouble)
            logger.warning("exporter %s %s", self.name, trouble)

    def _save_cursor(self, *, at_once: bool = False) -> None:
        position, when = self._saved
        done = self._settled()
        if done != position and (at_once or self._clock() - when >= CURSOR_EVERY):
            with contextlib.suppress(OSError):  # a full disk; the run log tells the user
                self._cursor.save(done)
            self._saved = (done, self._clock())

    def _settled(self) -> Position:
        """How far what was delivered is safe with the backend."""
        if not self._settling:
            return self._done
        now = self._clock()
        while self._unsettled and self._unsettled[0][0] <= now - self._settling:
            self._safe = self._unsettled.popleft()[1]
        return self._safe

    def _forked(self) -> None:
        """In a forked child: no thread, no lock held by one that is gone, nothing to do."""
        self._inert = True
        self._changed = threading.Condition()
        self._queue.clear()
        self._owed = Owed()


def after(position: Position, records: Sequence[Record] | deque[Record]) -> Position:
    """The position behind these records."""
    step, event = position.step, position.event
    for record in records:
        if isinstance(record, StepRecord):
            step = record.step + 1
        else:
            event += 1
    return Position(step, event)


def _before(goal: Position, start: Position, records: list[Record]) -> list[Record]:
    """Those of the records after `start` that lie before `goal`: the others come live.

    The log shows a record a moment before it is offered, and may order events differently.
    """
    wanted: list[Record] = []
    event = start.event
    for record in records:
        if isinstance(record, StepRecord):
            if record.step < goal.step:
                wanted.append(record)
        else:
            event += 1
            if event <= goal.event:
                wanted.append(record)
    return wanted


def _reached(done: Position, goal: Position) -> bool:
    return done.step >= goal.step and done.event >= goal.event


def _size(record: Record) -> int:
    """Bytes of a record's tables, beside which the rest is small."""
    return table_bytes(record) if isinstance(record, StepRecord) else 0


def unique_names(exporters: Sequence[Exporter]) -> list[str]:
    """The exporters' names, later ones of the same name numbered: `mlflow`, `mlflow-2`.

    Names that would share a cursor file count as the same.
    """
    names: list[str] = []
    taken: set[str] = set()
    for exporter in exporters:
        name, k = exporter.name, 1
        while safe_name(name).casefold() in taken:
            k += 1
            name = f"{exporter.name[:80]}-{k}"
        names.append(name)
        taken.add(safe_name(name).casefold())
    return names


def close_all(workers: Sequence[ExporterWorker], timeout: float = 10.0) -> dict[str, str]:
    """Ends all workers together, waiting at most `timeout` seconds for all of them.

    Returns what is still owed, in words, by name; "" where everything was delivered. A worker
    that hangs is left behind: its thread is a daemon. One that was never started closes its
    exporter all the same.
    """
    deadline = time.monotonic() + timeout
    for worker in workers:
        worker.begin_close()
    owed: dict[str, str] = {}
    for worker in workers:
        ended = worker.join(deadline - time.monotonic())
        owed[worker.name] = str(worker.owed) or ("" if ended else "the end of its run")
    return owed


_workers: weakref.WeakSet[ExporterWorker] = weakref.WeakSet()


def is_in_use(exporter: Exporter) -> bool:
    """Whether a trace that has not ended feeds this very object."""
    return any(worker.exporter is exporter and worker.active for worker in list(_workers))


def _after_fork() -> None:
    for worker in list(_workers):
        worker._forked()


# Per process by nature: a fork concerns every worker there is.
os.register_at_fork(after_in_child=_after_fork)
