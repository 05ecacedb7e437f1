"""Exporters for tests, one that remembers, one that fails, one that hangs; a backlog in memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gradtrace.records import Event, Record, RunInfo, StepRecord


class RecordingExporter:
    """Keeps every record it gets, in order. Any thread may look."""

    def __init__(self, name: str = "recording") -> None:
        self.name = name
        self.run: RunInfo | None = None
        self.closed = False
        self.records: list[Record] = []
        self._arrived = threading.Condition()

    def open(self, run: RunInfo) -> None:
        """Remembers the run."""
        self.run = run

    def export(self, records: Sequence[Record]) -> None:
        """Remembers the records."""
        with self._arrived:
            self.records.extend(records)
            self._arrived.notify_all()

    def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True

    @property
    def opened(self) -> bool:
        """Whether `open` was called."""
        return self.run is not None

    @property
    def steps(self) -> list[StepRecord]:
        """The steps among the records."""
        with self._arrived:
            return [record for record in self.records if isinstance(record, StepRecord)]

    @property
    def events(self) -> list[Event]:
        """The events among the records."""
        with self._arrived:
            return [record for record in self.records if isinstance(record, Event)]

    def wait_for(self, count: int, timeout: float = 30.0) -> bool:
        """Waits until at least `count` records have arrived; False after `timeout` seconds."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.records) >= count, timeout)

    def wait_for_steps(self, count: int, timeout: float = 30.0) -> bool:
        """Waits until at least `count` steps have arrived; False after `timeout` seconds."""
        with self._arrived:
            return self._arrived.wait_for(
                lambda: sum(isinstance(r, StepRecord) for r in self.records) >= count, timeout
            )


class FailingExporter(RecordingExporter):
    """Raises for its first `failures` exports (None: until `heal`), then remembers."""

    def __init__(self, failures: int | None = None, name: str = "failing") -> None:
        super().__init__(name)
        self.attempts = 0
        self._failures = failures
        self._tried = threading.Condition()

    def export(self, records: Sequence[Record]) -> None:
        """Raises ConnectionError, or remembers."""
        with self._tried:
            self.attempts += 1
            self._tried.notify_all()
            failing = self._failures is None or self.attempts <= self._failures
        if failing:
            raise ConnectionError("the backend is down")
        super().export(records)

    def heal(self) -> None:
        """The backend answers from now on."""
        with self._tried:
            self._failures = 0

    def wait_for_attempts(self, count: int, timeout: float = 30.0) -> bool:
        """Waits until `export` was called `count` times; False after `timeout` seconds."""
        with self._tried:
            return self._tried.wait_for(lambda: self.attempts >= count, timeout)


class HangingExporter(RecordingExporter):
    """Blocks in `export` until `release`, then remembers. `reached` is set when it first blocks."""

    def __init__(self, name: str = "hanging") -> None:
        super().__init__(name)
        self.reached = threading.Event()
        self._released = threading.Event()

    def export(self, records: Sequence[Record]) -> None:
        """Waits to be released, without limit."""
        self.reached.set()
        self._released.wait()
        super().export(records)

    def release(self) -> None:
        """Lets go."""
        self._released.set()


class MemoryBacklog:
    """A run log in memory: shows what was appended once it is flushed, as the one on disk does.

    What `lose` names is never shown. Any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: list[Record] = []
        self._shown: list[Record] = []

    def append(self, records: Sequence[Record]) -> None:
        """Takes records, in order, without showing them yet."""
        with self._lock:
            self._pending.extend(records)

    def flush(self) -> None:
        """Shows everything appended so far."""
        with self._lock:
            self._shown += self._pending
            self._pending.clear()

    def lose(self, *steps: int) -> None:
        """Forgets the records of these steps, as thinning or a full disk does; not events."""
        with self._lock:
            for records in (self._pending, self._shown):
                records[:] = [
                    r for r in records if not (isinstance(r, StepRecord) and r.step in steps)
                ]

    def read_since(
        self, step: int, event: int, limit: int, *, final: bool = False
    ) -> tuple[list[Record], int, int]:
        """At most `limit` records after a position, and the position after them."""
        found: list[Record] = []
        number = 0
        with self._lock:
            for record in self._shown:
                if isinstance(record, StepRecord):
                    wanted = record.step >= step
                else:
                    wanted = number >= event
                    number += 1
                if wanted and len(found) < limit:
                    found.append(record)
        for record in found:
            if isinstance(record, StepRecord):
                step = record.step + 1
            else:
                event += 1
        return found, step, event
