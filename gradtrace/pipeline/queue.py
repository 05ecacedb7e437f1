"""What an exporter has been offered and has not taken yet: bounded, and backed by the run log."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gradtrace.pipeline.position import Position
from gradtrace.records import Record, StepRecord, table_bytes, without_histograms

CAPACITY = 4096
MAX_BYTES = 64 << 20
BATCH = 256
"""Records that an exporter gets at once, at most."""


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

    @classmethod
    def of(cls, records: Iterable[Record]) -> Owed:
        """These records."""
        steps = events = 0
        for record in records:
            if isinstance(record, StepRecord):
                steps += 1
            else:
                events += 1
        return cls(steps, events)

    @property
    def total(self) -> int:
        """Steps and events."""
        return self.steps + self.events

    def __add__(self, other: Owed) -> Owed:
        return Owed(self.steps + other.steps, self.events + other.events)

    def __sub__(self, other: Owed) -> Owed:
        return Owed(self.steps - other.steps, self.events - other.events)

    def __str__(self) -> str:
        """In words: "3 steps and 1 event"; empty for none."""
        counts = ((self.steps, "step"), (self.events, "event"))
        return " and ".join(f"{n:,} {noun}{'s' if n > 1 else ''}" for n, noun in counts if n > 0)


class Queue:
    """Records between the thread that offers them and the exporter's own; not locked itself.

    `capacity` bounds the records, `max_bytes` their layer tables. All before `done` is delivered,
    what the queue holds begins at `head`, and `offered` lies behind the newest. A full queue lets
    the oldest go and counts them in `dropped`; with a `log` it is emptied instead and `behind`:
    what it held is then read back from the log (`wanted`), while it fills again (`refill`), until
    both meet (`meet`).

    Raises ValueError for bounds that are not positive.
    """

    def __init__(self, *, log: bool, capacity: int = CAPACITY, max_bytes: int = MAX_BYTES) -> None:
        if capacity < 1 or max_bytes < 1:
            raise ValueError(
                f"got capacity={capacity}, max_bytes={max_bytes}; expected at least one record "
                "and one byte"
            )
        self.done = Position()
        self.head = Position()
        self.offered = Position()
        self.owed = Owed()
        self.dropped = 0
        self.behind = False
        self.filling = True
        self._log = log
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._records: deque[Record] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    # -- live ---

    def put(self, records: Sequence[Record]) -> int:
        """Takes records in order; returns how many had to go for them and are lost."""
        self.offered = self.offered.after(records)
        self.owed += Owed.of(records)
        if not self.filling:
            return 0
        self._records.extend(records)
        self._bytes += sum(map(_size, records))
        full = len(self._records) > self._capacity or self._bytes > self._max_bytes
        return self._make_room() if full else 0

    def take(self) -> list[Record]:
        """Removes the oldest, at most BATCH; `head` lies behind them."""
        records = [self._records.popleft() for _ in range(min(BATCH, len(self._records)))]
        self._bytes -= sum(map(_size, records))
        self.head = self.head.after(records)
        return records

    def deliver(self, records: Sequence[Record], position: Position) -> None:
        """These have been delivered, and so has all before `position`."""
        self.owed -= Owed.of(records)
        self.done = position

    def clear(self) -> None:
        """Lets go of what it holds, which stays owed."""
        self._records.clear()
        self._bytes = 0

    # -- behind, catching up from the log ---

    def wanted(
        self, records: list[Record], position: Position
    ) -> tuple[list[Record], Position] | None:
        """Those of the log's records after `done` that do not come live, and the position behind.

        None when there are none. `position` is what the log says lies behind `records`. It shows a
        record a moment before it is offered, and may order events differently.
        """
        goal = self.head if self.filling else self.offered
        found: list[Record] = []
        event = self.done.event
        for record in records:
            if isinstance(record, StepRecord):
                if record.step < goal.step:
                    found.append(record)
            else:
                event += 1
                if event <= goal.event:
                    found.append(record)
        if not found:
            return None
        return found, position if len(found) == len(records) else self.done.after(found)

    def refill(self) -> None:
        """From here on the queue is complete: the log is needed up to this point."""
        self.filling, self.head = True, self.offered

    def meet(self) -> int:
        """Ends the catching up; what lies before the queue and was not found is lost. How many."""
        queued = Owed.of(self._records)
        lost = (self.owed - queued).total
        self.owed = queued
        self.behind = False
        self.dropped += lost
        return lost

    # -- full ---

    def _make_room(self) -> int:
        """Empties the queue in favour of the log, or drops the oldest; how many were lost."""
        if self._log:
            self.clear()
            self.filling, self.behind = False, True
            return 0
        if self._bytes > self._max_bytes:
            self._thin_out()
        lost: list[Record] = []
        while len(self._records) > self._capacity or (
            self._bytes > self._max_bytes and len(self._records) > 1
        ):
            lost.append(self._records.popleft())
            self._bytes -= _size(lost[-1])
        self.head = self.head.after(lost)
        self.owed -= Owed.of(lost)
        self.dropped += len(lost)
        return len(lost)

    def _thin_out(self) -> None:
        """Lets go of the oldest histograms, before whole records have to go."""
        slim: deque[Record] = deque()
        for record in self._records:
            if isinstance(record, StepRecord) and self._bytes > self._max_bytes * 0.75:
                record, saved = without_histograms(record)
                self._bytes -= saved
            slim.append(record)
        self._records = slim


def _size(record: Record) -> int:
    """Bytes of a record's tables, beside which the rest is small."""
    return table_bytes(record) if isinstance(record, StepRecord) else 0
