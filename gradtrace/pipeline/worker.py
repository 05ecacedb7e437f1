"""One exporter's thread.

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
from collections.abc import Callable, Iterator, Sequence

from gradtrace.exporter import Exporter
from gradtrace.pipeline.adapter import Adapter
from gradtrace.pipeline.position import Cursor, Position, Progress
from gradtrace.pipeline.queue import BATCH, CAPACITY, MAX_BYTES, Backlog, Owed, Queue
from gradtrace.pipeline.redact import redacted
from gradtrace.records import Record

logger = logging.getLogger("gradtrace")

POLL = 0.1
PATIENCE = 10.0
"""Seconds to wait for records that were offered but do not appear in the log."""
HURRY = 0.5
"""Seconds that a `close` which was asked to return gets for it."""


def growing_pauses() -> Iterator[float]:
    """Seconds between retries: 0.5, 1, 2, ... 30, 30, ..."""
    pause = 0.5
    while True:
        yield pause
        pause = min(30.0, pause * 2)


class ExporterWorker:
    """Delivers records to one exporter, in order, each once.

    `capacity` and `max_bytes` (of layer tables) bound the queue; with a `backlog` a full queue
    loses nothing, without one the oldest go and are counted in `dropped`, as is what the log does
    not show within `patience` seconds. How far it has got is stored in `cursor`. `failures` counts
    exports that raised. Costs the offering thread about 5 us a call and 1 us a record.

    Raises ValueError for bounds that are not positive.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        backlog: Backlog | None = None,
        cursor: Cursor | None = None,
        capacity: int = CAPACITY,
        max_bytes: int = MAX_BYTES,
        pauses: Callable[[], Iterator[float]] = growing_pauses,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not patience >= 0:
            raise ValueError(f"got patience={patience}; expected seconds, 0 or more")
        self.adapter = adapter
        self.name = adapter.name
        self.failures = 0
        self._backlog = backlog
        self._pauses = pauses
        self._patience = patience
        self._clock = clock
        self._progress = Progress(cursor or Cursor(None, self.name), adapter.settling, clock)
        self._told: set[str] = set()

        self._changed = threading.Condition()
        # All below changes under the lock.
        self._queue = Queue(log=backlog is not None, capacity=capacity, max_bytes=max_bytes)
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

    @property
    def dropped(self) -> int:
        """How many records were offered and are lost."""
        return self._queue.dropped

    @property
    def owed(self) -> Owed:
        """What was offered and neither delivered nor dropped."""
        with self._changed:
            return self._queue.owed

    @property
    def debt(self) -> str:
        """After `join`: what is still owed, in words; empty where everything was delivered."""
        return str(self.owed) or ("the end of its run" if self._left else "")

    def offer(self, records: Sequence[Record]) -> None:
        """Takes records in order; never waits for the backend and never raises. Any one thread."""
        if self._inert or not records:
            return
        with self._changed:
            if self._ended:
                return
            lost = self._queue.put(records)
            self._changed.notify_all()
        if lost:
            self._tell("loses records, the oldest first: there is no run log to catch up from")

    def flush(self, timeout: float) -> bool:
        """Waits until everything offered so far is delivered; False after `timeout` seconds."""
        with self._changed:
            goal = self._queue.offered
            self._changed.wait_for(
                lambda: self._queue.done.reached(goal) or not self._thread.is_alive(), timeout
            )
            return self._inert or self._queue.done.reached(goal)

    def begin_close(self) -> None:
        """Asks the thread to deliver what is left, without pauses, and to close the exporter.

        What was offered is on disk by now, if the disk takes it. A worker that was never started
        closes its exporter all the same.
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
            if self._thread.is_alive() and self.adapter.hurry():
                self._thread.join(HURRY)
        # What it has not begun to send by now is owed: it may be sent by another process.
        self._left = self._thread.is_alive()
        return not self._left

    # -- the exporter's own thread ---

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            records, position = batch
            if records and not self._deliver(records):
                break
            with self._changed:
                self._queue.deliver(records, position)
                self._changed.notify_all()
            self._progress.advance(position)
            self._progress.store()
            if self._left:
                break
        with self._changed:
            self._ended = True
            self._queue.clear()
            self._changed.notify_all()
        self._progress.store(at_once=True)
        try:
            self.adapter.close()
        except (Exception, SystemExit) as error:
            self.failures += 1
            logger.warning("exporter %s failed to close: %s", self.name, redacted(repr(error)))
        else:
            self._progress.settle()
            self._progress.store(at_once=True)

    def _next_batch(self) -> tuple[list[Record], Position] | None:
        """The next records and the position after them; None when there is nothing left to do."""
        with self._changed:
            queue = self._queue
            if not self._changed.wait_for(
                lambda: len(queue) or queue.behind or self._closing, self._progress.pause
            ):
                return [], queue.done  # a pause in the run is a good time to store the cursor
            if not queue.behind:
                return (queue.take(), queue.head) if len(queue) else None
        return self._from_backlog()

    def _from_backlog(self) -> tuple[list[Record], Position] | None:
        give_up = self._clock() + self._patience
        while True:
            # Asked before reading: what was on disk when the end was announced is then seen.
            closing = self._closing
            final = closing or self._clock() >= give_up
            records, position = self._read_backlog(final)
            with self._changed:
                queue = self._queue
                wanted = queue.wanted(records, position)
                if wanted is not None:
                    return wanted
                caught_up = queue.filling
                if not caught_up:
                    queue.refill()
                if queue.done.reached(queue.head) or (caught_up and final and not closing):
                    lost, head = queue.meet(), queue.head
                    break
                if caught_up and closing:
                    return None  # still owed: the log may get it yet, and then it can be sent
                if caught_up:
                    self._changed.wait(POLL)  # offered, but not on disk yet
        if lost:
            self._tell("loses records: they are not, or no longer, in the run log")
        return [], head

    def _read_backlog(self, final: bool) -> tuple[list[Record], Position]:
        assert self._backlog is not None
        done = self._queue.done
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
                self.adapter.export(records)
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

    def _forked(self) -> None:
        """In a forked child: no thread, no lock held by one that is gone, nothing to do."""
        self._inert = True
        self._changed = threading.Condition()
        self._queue.clear()
        self._queue.owed = Owed()


_workers: weakref.WeakSet[ExporterWorker] = weakref.WeakSet()


def is_in_use(exporter: Exporter) -> bool:
    """Whether a trace that has not ended feeds this very object."""
    return any(w.adapter.exporter is exporter and w.active for w in list(_workers))


def _after_fork() -> None:
    for worker in list(_workers):
        worker._forked()


# Per process by nature: a fork concerns every worker there is.
os.register_at_fork(after_in_child=_after_fork)
