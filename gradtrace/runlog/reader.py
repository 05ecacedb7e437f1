"""Reading a run directory: while it is being written, after the end, and after `kill -9`."""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradtrace.records import Event, LayerTable, Record, RunNote, StepRecord
from gradtrace.runlog.schema import (
    LAYER_TABLES,
    PLAIN_SCHEMAS,
    SCHEMAS,
    STEPS,
    LayerRows,
    parse_event,
    row_record,
    step_rows,
)

INFO_FILE = "run.json"
EVENTS_FILE = "events.jsonl"

_UNREADABLE = (pa.ArrowException, OSError, EOFError, ValueError, MemoryError)
_HEAD_BYTES = 2**16


class SegmentReader:
    """One segment file, read as far as it is complete; `poll` again for what came since.

    Holds no file open. A file replaced meanwhile (thinned) is read again from its start.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.path = path
        self._table = table
        self._start_over(-1)

    def _start_over(self, inode: int) -> None:
        self._inode = inode
        self._offset = 0
        self._head = b""

    def poll(self) -> Any | None:
        """The rows completed since the last call as one batch, validated; None without any.

        Never raises OSError.
        """
        try:
            data = self._read()
        except OSError:
            return None
        head = self._head
        end, batches = self._scan(data)
        self._offset += end
        if not batches:
            return None
        stream = head + data[:end] if head else data
        found: list[Any] = []
        try:
            reader = pa.ipc.open_stream(pa.py_buffer(stream))
            for _ in range(batches):
                batch = _conform(reader.read_next_batch(), self._table)
                if batch is not None:
                    found.append(batch)
        except (*_UNREADABLE, StopIteration):
            pass  # what was read so far is sound; the rest of this segment is not
        return pa.concat_batches(found) if found else None

    def _read(self) -> bytes:
        # Not a memory map: the writer may cut a torn tail off under our feet.
        with self.path.open("rb", buffering=0) as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._start_over(inode)
            file.seek(self._offset)
            return file.readall() or b""

    def _scan(self, data: bytes) -> tuple[int, int]:
        """The length of the complete messages in `data` and how many are record batches."""
        source = pa.BufferReader(data)
        position = batches = 0
        while position + 8 <= len(data):
            marker, length = struct.unpack_from("<Ii", data, position)
            # A damaged header may name any length; Arrow is only asked for what can be there.
            if marker != 0xFFFFFFFF or not 0 < length <= len(data) - position - 8:
                break
            try:
                source.seek(position)
                message = pa.ipc.read_message(source)
            except _UNREADABLE:
                break
            if message.type == "record batch":
                batches += 1
            else:
                self._head += data[position : source.tell()]
            position = source.tell()
        return position, batches


def _conform(batch: Any, table: str) -> Any | None:
    """`batch` in this version's schema, None when it is damaged or something else."""
    schema = SCHEMAS[table]
    try:
        batch.validate(full=True)
        columns = batch.columns
        if not batch.schema.equals(schema):
            columns = [
                batch.column(field.name).cast(field.type)
                if field.name in batch.schema.names
                else pa.nulls(batch.num_rows, field.type)
                for field in schema
            ]
    except _UNREADABLE:
        return None
    if columns[0].null_count or not batch.num_rows:
        return None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def segments(directory: Path, table: str) -> list[tuple[int, Path]]:
    """The segment files of a table with their numbers, in order."""
    pattern = re.compile(rf"{table}-(\d+)\.arrows")
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    matches = filter(None, map(pattern.fullmatch, names))
    return sorted((int(match[1]), directory / match[0]) for match in matches)


def _first_step(path: Path) -> int | None:
    """The first step a segment was opened with, from its schema alone."""
    try:
        with path.open("rb", buffering=0) as file:
            schema = pa.ipc.read_schema(pa.py_buffer(file.read(_HEAD_BYTES) or b""))
        return int((schema.metadata or {})[b"first_step"])
    except (*_UNREADABLE, KeyError):
        return None


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
            opened = _first_step(found[at][1])
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

    def take(self, step: int) -> LayerTable | None:
        while self._rows is None or self._rows.last < step:
            batch = None if self.dry else self._cursor.next_batch()
            if batch is None:
                self.dry = True
                return None
            self._rows = LayerRows(self._table, batch)
        return self._rows.find(step)


class _Steps:
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
        tables: dict[str, LayerTable | None] = {}
        for table, count in zip(LAYER_TABLES, row["layers"] or [None] * 5, strict=False):
            if count == 0:
                tables[table] = _empty(table)
            else:
                tables[table] = None if count is None else self._layers[table].take(step)
        try:
            return row_record(row, tables)
        except (ValueError, TypeError):
            return None  # damaged text in a row must not hide the other rows


@functools.cache
def _empty(table: str) -> LayerTable:
    columns = tuple(SCHEMAS[table].names[2:])
    return LayerTable((), pa.array([], pa.float64()).to_numpy().reshape(0, len(columns)), columns)


class _Events:
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
        self._steps: _Steps | None = None
        self._events = _Events(path)

    def read_since(
        self, step: int, event: int, limit: int, *, final: bool = False
    ) -> tuple[list[Record], int, int]:
        """At most `limit` records, then the `step` and `event` to ask for next.

        `step` is the first step number not delivered yet, `event` how many events were. Steps
        come before events of the same step; so an event whose step is not on disk yet is held
        back until it is, or the run has ended, or `final` asks for all there is. Notes are not
        held back. Raises no OSError: what cannot be read now is not there yet.
        """
        if self._steps is None or self._steps.next != step:
            self._steps = _Steps(self._path, step)
        records: list[Record] = []
        while len(records) < limit:
            record = self._steps.peek()
            happened = self._events.get(event)
            if happened is not None and (
                happened.step < record.step
                if record is not None
                else happened.step < self._steps.next
                or isinstance(happened, RunNote)
                or final
                or _status(_info(self._path)) != "running"
            ):
                records.append(happened)
                event += 1
            elif record is not None:
                records.append(self._steps.pop())
            else:
                break
        return records, self._steps.next, event


class Run:
    """A run directory. Tables, events and info are read once, at first use; load again for news.

    Tables are `pyarrow.Table`s with the columns of the contract, empty when nothing was recorded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        """What `run.json` says."""
        return _info(self.path)

    @functools.cached_property
    def events(self) -> list[Event]:
        """All events, in the order they were written."""
        source = _Events(self.path)
        found: list[Event] = []
        while (event := source.get(len(found))) is not None:
            found.append(event)
        return found

    @property
    def status(self) -> str:
        """As in `run.json`, but "killed" when the process of a running run is gone."""
        return _status(self.info)

    @functools.cached_property
    def steps(self) -> Any:
        """One row per optimizer step."""
        return self._table(STEPS)

    @functools.cached_property
    def gradients(self) -> Any:
        """One row per layer and sampled step, as are the tables below."""
        return self._table("gradients")

    @functools.cached_property
    def weights(self) -> Any:
        """Weights before the optimizer moved them."""
        return self._table("weights")

    @functools.cached_property
    def activations(self) -> Any:
        """Module outputs."""
        return self._table("activations")

    @functools.cached_property
    def signals(self) -> Any:
        """Gradients arriving at module outputs."""
        return self._table("signals")

    @functools.cached_property
    def updates(self) -> Any:
        """What the optimizer changed."""
        return self._table("updates")

    def records(self, first_step: int = 0, first_event: int = 0) -> Iterator[Record]:
        """The records in order by step, steps before events of the same step.

        Leaves out steps below `first_step` and the first `first_event` events. Equal to what was
        appended, but for tables that were thinned away or lost, which are None. Holds a segment
        of each table in memory, not the run.
        """
        steps = _Steps(self.path, first_step)
        events = deque(sorted(self.events[first_event:], key=lambda event: event.step))
        while (record := steps.peek()) is not None:
            while events and events[0].step < record.step:
                yield events.popleft()
            yield steps.pop()
        yield from events

    def _table(self, table: str) -> Any:
        schema = PLAIN_SCHEMAS[table]
        batches = [SegmentReader(path, table).poll() for _, path in segments(self.path, table)]
        plain = [batch.cast(schema) for batch in batches if batch is not None]
        return pa.Table.from_batches(plain, schema)


def load_run(path: str | Path) -> Run:
    """The run in directory `path`, finished or not. Raises ValueError when it holds no run."""
    run = Run(Path(path))
    if not run.info:
        raise ValueError(
            f"{str(path)!r} is no run directory: expected a folder with a readable {INFO_FILE}; "
            "give the folder of one run, usually <directory>/<run name>"
        )
    return run


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A line of a list of runs. `steps` is the last recorded step number plus one."""

    name: str
    path: Path
    started: float
    status: str
    steps: int


def list_runs(directory: str | Path) -> list[RunSummary]:
    """The runs in `directory`, oldest first; empty when there is no such directory.

    Reads `run.json` and the newest step segment of each.
    """
    try:
        paths = [entry for entry in Path(directory).iterdir() if entry.is_dir()]
    except OSError:
        return []
    found = []
    for path in paths:
        info = _info(path)
        started = info.get("started")
        if isinstance(started, int | float):
            name = str(info.get("name", path.name))
            found.append(RunSummary(name, path, started, _status(info), _count(path)))
    return sorted(found, key=lambda summary: (summary.started, summary.name))


def _count(path: Path) -> int:
    for _, segment in reversed(segments(path, STEPS)):
        batch = SegmentReader(segment, STEPS).poll()
        if batch is not None:
            return int(batch.column("step")[-1].as_py()) + 1
    return 0


def _info(path: Path) -> dict[str, Any]:
    """`run.json`, empty when it is missing or not ours."""
    try:
        info = json.loads((path / INFO_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) and "format" in info else {}


def _status(info: dict[str, Any]) -> str:
    status = str(info.get("status", "unknown"))
    pid = info.get("pid")
    if (
        status != "running"
        or info.get("hostname") != socket.gethostname()
        or not isinstance(pid, int)
        or pid <= 0
        or os.name != "posix"  # elsewhere signal 0 is not a question
    ):
        return status
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return "killed"
    except PermissionError:
        pass
    return status
