"""Segment files: Arrow streams that are read as far as they are complete."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradtrace.runlog.schema import SCHEMAS

_UNREADABLE = (pa.ArrowException, OSError, EOFError, ValueError, MemoryError)
_HEAD_BYTES = 2**16

FORMER_NAMES = {"output_gradients": "signals"}
"""What the files of a table were called in runs that older versions wrote."""


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
            columns = [_column(batch, field) for field in schema]
    except _UNREADABLE:
        return None
    if columns[0].null_count or not batch.num_rows:
        return None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(batch: Any, field: Any) -> Any:
    """A column as this version has it; casting loads Arrow's kernels, which takes a while."""
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    column = batch.column(field.name)
    return column if column.type == field.type else column.cast(field.type)


def segments(directory: Path, table: str) -> list[tuple[int, Path]]:
    """The segment files of a table with their numbers, in order, also those of its former name."""
    pattern = re.compile(rf"(?:{table}|{FORMER_NAMES.get(table, table)})-(\d+)\.arrows")
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    matches = filter(None, map(pattern.fullmatch, names))
    return sorted((int(match[1]), directory / match[0]) for match in matches)


def first_step(path: Path) -> int | None:
    """The first step a segment was opened with, from its schema alone."""
    try:
        with path.open("rb", buffering=0) as file:
            schema = pa.ipc.read_schema(pa.py_buffer(file.read(_HEAD_BYTES) or b""))
        return int((schema.metadata or {})[b"first_step"])
    except (*_UNREADABLE, KeyError):
        return None
