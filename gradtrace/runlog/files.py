"""The files of a run as they are written: unbuffered, so that a fork or a kill loses nothing."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradtrace.runlog.atomic import write_fully
from gradtrace.runlog.schema import SCHEMAS, write_options
from gradtrace.runlog.thinning import Segment


class TableFile:
    """One table's segments: Arrow streams, a batch per os-level write, nothing buffered."""

    def __init__(
        self, directory: Path, table: str, limit: int, sealed: Callable[[Segment], None]
    ) -> None:
        self._directory = directory
        self._table = table
        self._limit = limit
        self._sealed = sealed
        self._number = 0
        self._segment: Segment | None = None
        self._fd = -1
        self._stream: Any = None
        self._sink = io.BytesIO()
        self._held = 0

    @property
    def size(self) -> int:
        """Bytes of the open segment."""
        return 0 if self._segment is None else self._segment.size

    def write(self, batch: Any, first: int, last: int) -> None:
        """Appends a batch with these steps. Raises OSError; the file then ends before it."""
        if self._segment is not None and not os.fstat(self._fd).st_nlink:
            self._leave()  # deleted under our feet: writing would seem to work
        segment = self._segment or self._open(first)
        try:
            self._stream.write_batch(batch)
            self._drain(segment)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, segment.size)
            self._leave()
            if not segment.size:
                with contextlib.suppress(OSError):
                    segment.path.unlink()
            raise
        segment.last_step = last
        # A reader holds a segment in memory, whatever it was compressed to.
        self._held += batch.nbytes
        if max(segment.size, self._held) >= self._limit:
            self.seal()

    def seal(self) -> None:
        """Ends the open segment, if any; the next write begins another."""
        if self._segment is not None:
            with contextlib.suppress(OSError):  # the end mark is a courtesy, readers do without
                self._stream.close()
                self._drain(self._segment)
            self._leave()

    def _open(self, first: int) -> Segment:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        path = self._directory / f"{self._table}-{self._number:06}.arrows"
        self._fd = os.open(path, flags, 0o644)
        self._number += 1
        self._held = 0
        self._sink = io.BytesIO()
        # A schema that tells where the segment begins lets a reader skip it unread.
        schema = SCHEMAS[self._table].with_metadata({"first_step": str(first)})
        options = write_options(self._table)
        self._stream = pa.ipc.new_stream(self._sink, schema, options=options)
        self._segment = Segment(self._table, path, first, first, 0)
        return self._segment

    def _drain(self, segment: Segment) -> None:
        with self._sink.getbuffer() as data:
            write_fully(self._fd, data)
            segment.size += len(data)
        self._sink.seek(0)
        self._sink.truncate()

    def _leave(self) -> None:
        segment, self._segment, self._stream = self._segment, None, None
        with contextlib.suppress(OSError):
            os.close(self._fd)
        if segment is not None and segment.size:
            self._sealed(segment)


class EventFile:
    """`events.jsonl`: one write per line."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path
        self._fd: int | None = None
        self._torn = False

    def write(self, line: bytes) -> None:
        """Appends a line. Raises OSError; a line written in part is then skipped by readers."""
        if self._fd is not None and not os.fstat(self._fd).st_nlink:
            self.close()
        if self._fd is None:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        data = b"\n" + line if self._torn else line
        written = os.write(self._fd, data)
        self.size += written
        self._torn = written != len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes were taken")

    def close(self) -> None:
        """Closes the file; a later write opens it again."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = None
