"""Records read back in order, also while the run is being written."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from gradtrace.records import LAYER_TABLES, Event, Record, RunNote, StepRecord, table_bytes
from gradtrace.runlog.eventlines import parse_event
from gradtrace.runlog.layerrows import LayerRows, Layers, no_layers
from gradtrace.runlog.schema import STEPS, row_record, step_rows
from gradtrace.runlog.segments import SegmentReader, first_step, segments
from gradtrace.runlog.status import read_info, status_of

MOST_BYTES = 16 * 2**20
"""Of layer tables that are read back at once."""

EVENTS_FILE = "events.jsonl"


class TableCursor:
    """The batches of one table from step `first` on, in order; goes on where it stopped."""

    def __init__(self, directory: Path, table: str, first: int) -> None:
        self._directory = directory
        self._table = table
        self._segment: SegmentReader | None = None
        self._number = -1
        self._known = deque(self._from(first))

    def _from(self, first: int) -> list[tuple[int, Path]]:
        found = segments(self._directory, self._table)
        for at in range(len(found) - 1, 0, -1):
            opened = first_step(found[at][1])
            if opened is not None and opened <= first:
                return found[at:]
        return found

    def next_batch(self) -> Any | None:
        """The next batch, None when nothing more is complete by now."""
        while True:
            # Asked before polling: once a later segment exists, this one does not grow any more.
            if not self._known:
                found = segments(self._directory, self._table)
                self._known.extend(item for item in found if item[0] > self._number)
            batch = None if self._segment is None else self._segment.poll()
            if batch is not None or not self._known:
                return batch
            self._number, path = self._known.popleft()
            self._segment = SegmentReader(path, self._table)


class _Layers:
    """Layer tables by step, asked in ascending order."""

    def __init__(self, directory: Path, table: str, first: int) -> None:
        self._table = table
        self._cursor = TableCursor(directory, table, first)
        self._rows: LayerRows | None = None
        self.dry = False

    def take(self, step: int) -> Layers | None:
        while self._rows is None or self._rows.last < step:
            batch = None if self.dry else self._cursor.next_batch()
            if batch is None:
                self.dry = True
                return None
            self._rows = LayerRows(self._table, batch)
        return self._rows.find(step)


class Steps:
    """StepRecords from step `first` on, with their tables; resumable while the run goes on."""

    def __init__(self, directory: Path, first: int) -> None:
        self.next = first
        self._cursor = TableCursor(directory, STEPS, first)
        self._layers = {table: _Layers(directory, table, first) for table in LAYER_TABLES}
        self._rows: deque[dict[str, Any]] = deque()
        self._head: StepRecord | None = None

    def peek(self) -> StepRecord | None:
        """The next record, None when no more is on disk by now."""
        while self._head is None:
            while not self._rows:
                batch = self._cursor.next_batch()
                if batch is None:
                    return None
                self._rows.extend(step_rows(batch))
                for layers in self._layers.values():
                    layers.dry = False
            row = self._rows.popleft()
            if row["step"] >= self.next:
                self._head = self._record(row)
        return self._head

    def pop(self) -> StepRecord:
        """The record that `peek` showed."""
        record = self._head
        if record is None:
            raise RuntimeError("pop() without a record that peek() returned")
        self._head = None
        self.next = record.step + 1
        return record

    def _record(self, row: dict[str, Any]) -> StepRecord | None:
        step = row["step"]
        tables: dict[str, Layers | None] = {}
        for table, count in zip(LAYER_TABLES, row["layers"] or (), strict=False):
            if count == 0:
                tables[table] = no_layers(table)
            else:
                tables[table] = None if count is None else self._layers[table].take(step)
        try:
            return row_record(row, tables)
        except (ValueError, TypeError):
            return None  # damaged text in a row must not hide the other rows


class Events:
    """The complete lines of `events.jsonl`, by number; remembers how far it has read."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EVENTS_FILE
        self._start_over()

    def _start_over(self) -> None:
        self._offset = 0
        self._first = 0
        self._waiting: deque[Event] = deque()

    def get(self, number: int) -> Event | None:
        """Event `number`, counted from 0; ask in ascending order. None when not there yet."""
        if number < self._first:
            self._start_over()
        while self._first < number and self._advance():
            self._waiting.popleft()
            self._first += 1
        return self._waiting[0] if self._first == number and self._advance() else None

    def _advance(self) -> bool:
        if not self._waiting:
            try:
                with self._path.open("rb", buffering=0) as file:
                    file.seek(self._offset)
                    data = file.readall() or b""
            except OSError:
                return False
            complete = data.rfind(b"\n") + 1
            self._offset += complete
            self._waiting.extend(filter(None, map(parse_event, data[:complete].split(b"\n"))))
        return bool(self._waiting)


class Backlog:
    """What a run directory holds beyond a given point, for an exporter that fell behind.

    One thread at a time. Calls that continue where the last one ended read only what is new.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: Steps | None = None
        self._events = Events(path)

    def read_since(
        self, step: int, event: int, limit: int, *, final: bool = False
    ) -> tuple[list[Record], int, int]:
        """At most `limit` records, fewer where they are large, then what to ask for next.

        `step` is the first step number not delivered yet, `event` how many events were. Steps
        come before events of the same step; so an event whose step is not on disk yet is held
        back until it is, or the run has ended, or `final` asks for all there is. Notes are not
        held back. Raises no OSError: what cannot be read now is not there yet.
        """
        if self._steps is None or self._steps.next != step:
            self._steps = Steps(self._path, step)
        records: list[Record] = []
        held = 0
        while len(records) < limit and held < MOST_BYTES:
            record = self._steps.peek()
            happened = self._events.get(event)
            if happened is not None and (
                happened.step < record.step
                if record is not None
                else happened.step < self._steps.next
                or isinstance(happened, RunNote)
                or final
                or status_of(read_info(self._path)) != "running"
            ):
                records.append(happened)
                event += 1
            elif record is not None:
                records.append(self._steps.pop())
                held += table_bytes(record)
            else:
                break
        return records, self._steps.next, event
