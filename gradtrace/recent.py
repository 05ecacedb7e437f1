"""The last records of a run, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gradtrace.records import Event, Record, StepRecord, table_bytes

STEPS = 1000
EVENTS = 10_000
TABLE_BYTES = 8 << 20


class Recent:
    """Keeps the newest steps, at most STEPS of them and TABLE_BYTES of tables, and events.

    Written by the background thread; reading copies, from any thread.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[StepRecord, int]] = deque()
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._bytes = 0
        self.count = 0
        """Steps seen in all."""
        self.first_time: float | None = None
        self.last_time: float | None = None

    def add(self, records: Sequence[Record]) -> None:
        """Takes records in order."""
        for record in records:
            if isinstance(record, StepRecord):
                self._add_step(record)
            else:
                self._events.append(record)

    def _add_step(self, record: StepRecord) -> None:
        size = table_bytes(record)
        self._steps.append((record, size))
        self._bytes += size
        while len(self._steps) > STEPS or (self._bytes > TABLE_BYTES and len(self._steps) > 1):
            self._bytes -= self._steps.popleft()[1]
        self.count += 1
        if self.first_time is None:
            self.first_time = record.time
        self.last_time = record.time

    def steps(self) -> list[StepRecord]:
        """The newest steps, oldest first."""
        return [record for record, _ in tuple(self._steps)]

    def events(self) -> list[Event]:
        """The newest events, oldest first."""
        return list(self._events)
