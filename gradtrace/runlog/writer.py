"""Writing a run directory, from one background thread, without ever being in the way."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradtrace.records import (
    LAYER_TABLES,
    Event,
    RunInfo,
    RunNote,
    StepRecord,
    table_bytes,
    without_histograms,
)
from gradtrace.runlog.atomic import write_atomically
from gradtrace.runlog.backlog import EVENTS_FILE
from gradtrace.runlog.eventlines import event_line
from gradtrace.runlog.files import EventFile, TableFile
from gradtrace.runlog.jsontext import jsonable, to_json
from gradtrace.runlog.layerrows import LayerEncoder
from gradtrace.runlog.outage import Outage
from gradtrace.runlog.schema import STEPS, steps_batch
from gradtrace.runlog.status import INFO_FILE
from gradtrace.runlog.thinning import Thinner

FORMAT = 1
FLUSH_BYTES = 8 * 2**20
HOLD_BYTES = 32 * 2**20
HOLD_EVENTS = 10_000


class RunLog:
    """Writes one run; for ONE thread. `append`, `flush` and `close` never raise OSError.

    Events are on disk when `append` returns. Steps are written by the first `append` after
    `flush_seconds`, or when many wait: whoever has nothing to append calls `flush`. What the disk
    refuses is kept, up to 32 MB and 10,000 events, and tried again with growing pauses; `lost`
    counts records dropped for good. `on_error` is told once when an outage begins and once when
    it is over. In a forked child every call does nothing. Bytes beyond `max_bytes` are thinned
    away, see `Thinner`. Raises ValueError for limits that are not positive.
    """

    def __init__(
        self,
        path: Path,
        info: RunInfo,
        *,
        max_bytes: int = 2 * 2**30,
        segment_bytes: int = 16 * 2**20,
        flush_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        on_error: Callable[[str], None] = lambda message: None,
    ) -> None:
        if max_bytes <= 0 or segment_bytes <= 0 or flush_seconds < 0:
            raise ValueError(
                f"got max_bytes={max_bytes}, segment_bytes={segment_bytes}, "
                f"flush_seconds={flush_seconds}; expected positive sizes and no negative time"
            )
        self.path = path
        self.lost = 0
        self._clock = clock
        self._on_error = on_error
        self._flush_seconds = flush_seconds
        self._pid = os.getpid()
        self._closed = False
        self._flushed = clock()
        self._outage = Outage(path, clock, on_error)
        self._refused = False

        self._pending: list[StepRecord] = []
        self._pending_bytes = 0
        self._newest = 0
        self._done = dict.fromkeys(LAYER_TABLES, 0)
        self._lines: list[bytes] = []
        self._encoders = {table: LayerEncoder(table) for table in LAYER_TABLES}

        self._thinner = Thinner(max_bytes, clock=clock, on_error=on_error)
        # Only complete segments can be thinned, so they must be small beside the budget.
        limit = max(1, min(segment_bytes, max_bytes // 32))
        self._tables = {
            table: TableFile(path, table, limit, self._thinner.add)
            for table in (*LAYER_TABLES, STEPS)
        }
        self._events = EventFile(path / EVENTS_FILE)
        self._info = _plain_info(info)
        self._info_stale = True
        self._write()

    def append(self, records: Sequence[StepRecord | Event]) -> None:
        """Takes records in the order of their steps; writes events at once."""
        if os.getpid() != self._pid:
            return
        if self._closed:
            self.lost += len(records)
            return
        for record in records:
            if isinstance(record, StepRecord):
                self._pending.append(record)
                self._pending_bytes += _size(record)
                self._newest = record.step
            else:
                self._append_event(record)
        due = self._clock() - self._flushed >= self._flush_seconds
        if self._outage.waiting():
            self._drop_excess()
        elif due or self._outage.active or self._pending_bytes >= FLUSH_BYTES:
            self._write()
        elif self._lines:
            self._guarded(self._write_events)

    def flush(self) -> None:
        """Writes all that waits, during an outage too."""
        if os.getpid() == self._pid and not self._closed:
            self._write()

    def update_info(self, values: Mapping[str, Any]) -> None:
        """Merges `values` into the top level of `run.json`, replacing the file in one step."""
        if os.getpid() != self._pid:
            return
        self._info |= jsonable(values)
        self._info_stale = True
        if not self._outage.waiting():
            self._guarded(self._write_info)

    def close(self, summary: Mapping[str, Any], *, status: str = "finished") -> None:
        """Writes all that waits and how the run ended; what cannot be written now is lost."""
        if os.getpid() != self._pid or self._closed:
            return
        self._closed = True
        self._info |= {"summary": jsonable(summary), "status": status, "ended": time.time()}
        self._info_stale = True
        if not self._write():
            self.lost += len(self._pending) + len(self._lines)
            self._on_error(
                f"the run log at {self.path} could not be written to its end; "
                f"{self.lost} records were lost"
            )
            # Room for one small file may be left, or come free by now.
            self._info["lost"] = self.lost
            with contextlib.suppress(OSError):
                self._write_info()
        self._pending.clear()
        self._lines.clear()
        for table in self._tables.values():
            table.seal()
        self._events.close()

    def _append_event(self, event: Event) -> None:
        try:
            self._lines.append(event_line(event))
        except Exception as error:  # fields are a detector's; one bad event must not stop a log
            self._refuse(error)
            return
        if not isinstance(event, RunNote):
            self._thinner.protect(event.step)
        if len(self._lines) > HOLD_EVENTS:
            del self._lines[0]
            self.lost += 1

    def _guarded(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            self._outage.begin(error, self.lost)
            return False
        return True

    def _write(self) -> bool:
        self._flushed = self._clock()
        written = self._guarded(self._write_all)
        if written and self._outage.active:
            self._outage.end(self.lost)
        self._drop_excess()
        return written

    def _write_all(self) -> None:
        self._write_events()
        self._write_steps()
        self._thin()
        # Looked for every time, since without it a directory that came back empty is no run.
        found = (self.path / INFO_FILE).exists()
        if self._info_stale or self._info["lost"] != self.lost or not found:
            self._write_info()

    def _write_events(self) -> None:
        while self._lines:
            self._events.write(self._lines[0])
            del self._lines[0]

    def _write_steps(self) -> None:
        # The steps table comes last, so that a step on disk has its layers on disk.
        for table in LAYER_TABLES:
            waiting = self._pending[self._done[table] :]
            layers = [(r.step, t) for r in waiting if (t := getattr(r, table)) is not None and t]
            self._write_batch(table, self._encoders[table].encode, layers)
            self._done[table] = len(self._pending)
        steps = [(record.step, record) for record in self._pending]
        self._write_batch(STEPS, lambda rows: steps_batch([r for _, r in rows]), steps)
        self._pending.clear()
        self._pending_bytes = 0
        self._done = dict.fromkeys(LAYER_TABLES, 0)

    def _write_batch(
        self, table: str, encode: Callable[[Any], Any], rows: Sequence[tuple[int, Any]]
    ) -> None:
        if not rows:
            return
        try:
            batch = encode(rows)
        except Exception:  # one malformed record must not take the others with it
            rows = [row for row in rows if self._sound(encode, row)]
            if not rows:
                return
            batch = encode(rows)
        self._tables[table].write(batch, rows[0][0], rows[-1][0])

    def _sound(self, encode: Callable[[Any], Any], row: tuple[int, Any]) -> bool:
        try:
            encode([row])
        except Exception as error:
            self._refuse(error)
            return False
        return True

    def _refuse(self, error: Exception) -> None:
        self.lost += 1
        if not self._refused:
            self._refused = True
            self._on_error(f"a record could not be stored ({error}); such records are counted lost")

    def _thin(self) -> None:
        open_bytes = self._events.size + sum(table.size for table in self._tables.values())
        if self._thinner.run(open_bytes, self._newest):
            self._info["thinned"] = self._thinner.ranges()
            self._info_stale = True

    def _drop_excess(self) -> None:
        if self._pending_bytes <= HOLD_BYTES:
            return
        for at, record in enumerate(self._pending):
            if self._pending_bytes <= HOLD_BYTES * 0.75:
                return
            self._pending[at], saved = without_histograms(record)
            self._pending_bytes -= saved
        if self._pending_bytes <= HOLD_BYTES:
            return
        count = 0
        while self._pending_bytes > HOLD_BYTES * 0.9:
            self._pending_bytes -= _size(self._pending[count])
            count += 1
        del self._pending[:count]
        self._done = {table: max(0, done - count) for table, done in self._done.items()}
        self.lost += count

    def _write_info(self) -> None:
        self._info["lost"] = self.lost
        write_atomically(self.path / INFO_FILE, to_json(self._info, indent=1))
        self._info_stale = False


def _size(record: StepRecord) -> int:
    samples = sum(len(batch.sample_ids or ()) for batch in record.batches)
    return 512 + 64 * (samples + len(record.parts)) + table_bytes(record)


def _plain_info(info: RunInfo) -> dict[str, Any]:
    fields = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)}
    state = {
        "format": FORMAT,
        "status": "running",
        "ended": None,
        "thinned": [],
        "lost": 0,
        "summary": {},
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
    }
    plain: dict[str, Any] = jsonable(fields | state)
    return plain
