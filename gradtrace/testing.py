"""Exporters for tests: one that remembers, one that fails, one that hangs."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gradtrace.records import Event, Record, RunInfo, StepRecord


class RecordingExporter:
    """Keeps every record it gets, in order."""

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
    def steps(self) -> list[StepRecord]:
        """The steps among the records."""
        return [record for record in self.records if isinstance(record, StepRecord)]

    @property
    def events(self) -> list[Event]:
        """The events among the records."""
        return [record for record in self.records if isinstance(record, Event)]

    def wait_for_steps(self, count: int, timeout: float = 30.0) -> bool:
        """Waits until at least `count` steps have arrived; False after `timeout` seconds."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.steps) >= count, timeout)


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
    """Blocks in its first export until `release`, then remembers."""

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
