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
from pathlib import Path
from typing import Protocol

from gradtrace.cursors import Cursor, Position
from gradtrace.exporter import Exporter
from gradtrace.records import Record, StepRecord

logger = logging.getLogger("gradtrace")

CAPACITY = 4096
BATCH = 256
CURSOR_EVERY = 0.2
PATIENCE = 10.0
"""Seconds to wait for records that were offered but do not appear in the log."""


class Backlog(Protocol):
    """Where an exporter that fell behind reads what it missed."""

    def read_since(self, step: int, event: int, limit: int) -> tuple[list[Record], int, int]:
        """Records after a position, in order, and the position after them."""


def growing_pauses() -> Iterator[float]:
    """Seconds between retries: 0.5, 1, 2, ... 30, 30, ..."""
    pause = 0.5
    while True:
        yield pause
        pause = min(30.0, pause * 2)


class ExporterWorker:
    """Delivers records to one exporter, in order, each once.

    `name` tells exporters of one kind apart. `capacity` bounds the queue, in records; with a
    `backlog` a full queue loses nothing, without one the oldest go and are counted in `dropped`.
    """

    def __init__(
        self,
        exporter: Exporter,
        *,
        name: str | None = None,
        backlog: Backlog | None = None,
        run: Path | None = None,
        capacity: int = CAPACITY,
        pauses: Callable[[], Iterator[float]] = growing_pauses,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; expected at least 1 record")
        self.name = name or exporter.name
        self.dropped = 0
        self._exporter = exporter
        self._backlog = backlog
        self._capacity = capacity
        self._pauses = pauses
        self._patience = patience
        self._clock = clock
        self._cursor = Cursor(run, self.name)
        self._done = Position()
        self._offered = Position()
        self._queue: deque[Record] = deque()
        self._behind = False
        self._closing = False
        self._inert = False
        self._saved = (Position(), clock())
        self._told_dropping = False
        self._changed = threading.Condition()
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

    def offer(self, records: Sequence[Record]) -> None:
        """Takes records in order; never waits for the backend and never raises. Any one thread."""
        if self._inert or not records:
            return
        with self._changed:
            self._offered = after(self._offered, records)
            if self._behind:
                pass  # they are read from the log when their turn comes
            elif len(self._queue) + len(records) <= self._capacity:
                self._queue.extend(records)
            elif self._backlog is not None:
                self._queue.clear()
                self._behind = True
            else:
                self._queue.extend(records)
                self._drop(len(self._queue) - self._capacity)
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Waits until everything offered so far is delivered; False after `timeout` seconds."""
        with self._changed:
            goal = self._offered
            return self._changed.wait_for(
                lambda: _reached(self._done, goal) or not self._thread.is_alive(), timeout
            ) and _reached(self._done, goal)

    @property
    def owed(self) -> Position:
        """How many steps and events were offered and not delivered, by number."""
        return Position(
            max(0, self._offered.step - self._done.step),
            max(0, self._offered.event - self._done.event),
        )

    def begin_close(self) -> None:
        """Asks the thread to deliver what is left, without pauses, and to end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def join(self, timeout: float) -> bool:
        """Waits for the thread; False if it is still busy and was left to itself."""
        if self._thread.ident is not None and not self._inert:
            self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    # -- the exporter's own thread ---

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            records, position = batch
            if records and not self._deliver(records):
                break
            with self._changed:
                self._done = position
                self._changed.notify_all()
            self._save_cursor()
        self._save_cursor(at_once=True)
        try:
            self._exporter.close()
        except Exception as error:
            logger.warning("exporter %s failed to close: %r", self.name, error)

    def _next_batch(self) -> tuple[list[Record], Position] | None:
        """The next records and the position after them; None when there is nothing left to do."""
        with self._changed:
            while not (self._queue or self._behind or self._closing):
                self._changed.wait()
            if self._queue:
                records = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                return records, after(self._done, records)
            if not self._behind:
                return None
        return self._from_backlog()

    def _from_backlog(self) -> tuple[list[Record], Position] | None:
        assert self._backlog is not None
        give_up = self._clock() + self._patience
        while True:
            try:
                records, step, event = self._backlog.read_since(
                    self._done.step, self._done.event, BATCH
                )
            except Exception as error:
                logger.warning("exporter %s cannot read the run log: %r", self.name, error)
                records, step, event = [], self._done.step, self._done.event
            if records:
                return records, Position(step, event)
            with self._changed:
                if _reached(self._done, self._offered):
                    # Nothing was offered since: from here on the queue is complete again.
                    self._behind = False
                    return [], self._done
                if self._closing or self._clock() >= give_up:
                    missing = self.owed
                    self._drop(missing.step + missing.event, from_queue=False)
                    self._behind = False
                    return None if self._closing else ([], self._offered)
                self._changed.wait(0.1)  # offered, but not on disk yet

    def _deliver(self, records: list[Record]) -> bool:
        """Exports with retries; False when the trace ends before the backend answers."""
        failing = False
        for pause in self._pauses():
            last = self._closing
            try:
                self._exporter.export(records)
            except Exception as error:
                if not failing:
                    failing = True
                    logger.warning(
                        "exporter %s fails, and is tried again: %s: %s",
                        self.name,
                        type(error).__name__,
                        error,
                    )
                if last:
                    return False
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, pause)
            else:
                if failing:
                    logger.info("exporter %s works again", self.name)
                return True
        return False

    def _drop(self, count: int, *, from_queue: bool = True) -> None:
        for _ in range(count if from_queue else 0):
            self._queue.popleft()
        self.dropped += count
        if count and not self._told_dropping:
            self._told_dropping = True
            logger.warning(
                "exporter %s cannot keep up and loses records: %s",
                self.name,
                "the oldest, for there is no run log to catch up from"
                if from_queue
                else "the run log no longer has them",
            )

    def _save_cursor(self, *, at_once: bool = False) -> None:
        position, when = self._saved
        if self._done != position and (at_once or self._clock() - when >= CURSOR_EVERY):
            with contextlib.suppress(OSError):  # a full disk; the run log tells the user
                self._cursor.save(self._done)
            self._saved = (self._done, self._clock())

    def _forked(self) -> None:
        """In a forked child: no thread, no lock held by one that is gone, nothing to do."""
        self._inert = True
        self._changed = threading.Condition()


def after(position: Position, records: Sequence[Record]) -> Position:
    """The position behind these records."""
    step, event = position.step, position.event
    for record in records:
        if isinstance(record, StepRecord):
            step = record.step + 1
        else:
            event += 1
    return Position(step, event)


def _reached(done: Position, goal: Position) -> bool:
    return done.step >= goal.step and done.event >= goal.event


def unique_names(exporters: Sequence[Exporter]) -> list[str]:
    """The exporters' names, later ones of the same name numbered: `mlflow`, `mlflow-2`."""
    names: list[str] = []
    for exporter in exporters:
        name, k = exporter.name, 1
        while name in names:
            k += 1
            name = f"{exporter.name}-{k}"
        names.append(name)
    return names


def close_all(workers: Sequence[ExporterWorker], timeout: float) -> dict[str, str]:
    """Ends all workers together, waiting at most `timeout` seconds for all of them.

    Returns what is still owed, in words, by name; "" where everything was delivered. A worker
    that hangs is left behind: its thread is a daemon.
    """
    deadline = time.monotonic() + timeout
    for worker in workers:
        worker.begin_close()
    owed: dict[str, str] = {}
    for worker in workers:
        ended = worker.join(deadline - time.monotonic())
        left = worker.owed
        parts = [
            f"{count} {noun}{'s' if count > 1 else ''}"
            for count, noun in ((left.step, "step"), (left.event, "event"))
            if count
        ]
        owed[worker.name] = " and ".join(parts) or ("" if ended else "the end of its run")
    return owed


_workers: weakref.WeakSet[ExporterWorker] = weakref.WeakSet()


def _after_fork() -> None:
    for worker in list(_workers):
        worker._forked()


# Per process by nature: a fork concerns every worker there is.
os.register_at_fork(after_in_child=_after_fork)
