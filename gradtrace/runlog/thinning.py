"""Keeping a run directory within its disk budget by thinning what is oldest."""

from __future__ import annotations

import bisect
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradtrace.runlog.arrays import as_numpy
from gradtrace.runlog.atomic import write_atomically
from gradtrace.runlog.schema import SCHEMAS, STEPS, write_options
from gradtrace.runlog.segments import SegmentReader

BEFORE_EVENT = 50
AFTER_EVENT = 20
LEVELS = (10, 100)
_SECONDS = 0.1
_PAUSE = 30.0


@dataclass(slots=True)
class Segment:
    """A segment file that is not written any more. `stride`: the usual distance of its steps."""

    table: str
    path: Path
    first_step: int
    last_step: int
    size: int
    kept_every: int = 1
    stride: int = 1
    thinned: bool = False


class Thinner:
    """Rewrites old segments with every 10th, then every 100th of their steps.

    Layer tables first, the steps table when they are all thinned, events never; nor any step from
    `BEFORE_EVENT` before to `AFTER_EVENT` after an event, nor the newest steps, where an event
    may yet come. Used by the thread that writes the log.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_error: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._on_error = on_error
        self._segments: list[Segment] = []
        self._queue: list[tuple[bool, int, int, int]] = []
        self._last: dict[str, int] = {}
        self._event_steps: list[int] = []
        self._bytes = 0
        self._paused_until = -float("inf")
        self._told = False

    def add(self, segment: Segment) -> None:
        """Takes charge of a segment that is complete."""
        segment.stride = max(1, segment.first_step - self._last.get(segment.table, 0))
        self._last[segment.table] = segment.last_step
        self._segments.append(segment)
        self._bytes += segment.size
        self._push(len(self._segments) - 1)

    def protect(self, step: int) -> None:
        """Keeps the neighbourhood of an event at `step` from now on."""
        at = bisect.bisect_left(self._event_steps, step)
        if at == len(self._event_steps) or self._event_steps[at] != step:
            self._event_steps.insert(at, step)

    def run(self, other_bytes: int, newest: int) -> bool:
        """Thins until the budget holds again, or about 0.1 s have passed; True when files changed.

        `other_bytes` is what the directory holds beside the segments added, `newest` the last
        step written. One segment is read into memory at a time. Never raises OSError: what cannot
        be rewritten stays as it is.
        """
        until = self._clock() + _SECONDS
        changed = False
        recent: list[int] = []
        while self._bytes + other_bytes > self._max_bytes and self._clock() >= self._paused_until:
            if not self._queue:
                self._tell(
                    f"the run log needs {self._bytes + other_bytes} bytes although everything old "
                    f"is thinned, expected at most {self._max_bytes}; it goes on growing, allow "
                    "it more or measure less often"
                )
                break
            number = heapq.heappop(self._queue)[-1]
            segment = self._segments[number]
            if segment.last_step > newest - BEFORE_EVENT:
                recent.append(number)
                continue
            every = next(level for level in LEVELS if level > segment.kept_every)
            size = segment.size
            try:
                changed |= thin_segment(segment, every, np.array(self._event_steps, np.int64))
            except OSError as error:
                self._push(number)
                self._paused_until = self._clock() + _PAUSE
                self._tell(f"the run log could not be thinned ({error}); it goes on growing")
                break
            self._bytes -= size - segment.size
            self._push(number)
            if self._clock() > until:
                break
        for number in recent:
            self._push(number)
        return changed

    def ranges(self) -> list[dict[str, Any]]:
        """What was thinned, for `run.json`: table, first_step, last_step, kept_every."""
        found: list[dict[str, Any]] = []
        for segment in sorted(self._segments, key=lambda s: (s.table, s.first_step)):
            mark = {"table": segment.table, "kept_every": segment.kept_every}
            if not segment.thinned:
                found.append({})  # parts the ranges on either side
            elif found and found[-1].items() >= mark.items():
                found[-1]["last_step"] = segment.last_step
            else:
                steps = {"first_step": segment.first_step, "last_step": segment.last_step}
                found.append(mark | steps)
        return [entry for entry in found if entry]

    def _push(self, number: int) -> None:
        segment = self._segments[number]
        if segment.kept_every < LEVELS[-1] and segment.size:
            key = (segment.table == STEPS, segment.kept_every, segment.first_step, number)
            heapq.heappush(self._queue, key)

    def _tell(self, message: str) -> None:
        if not self._told:
            self._told = True
            self._on_error(message)


def thin_segment(segment: Segment, every: int, event_steps: npt.NDArray[np.int64]) -> bool:
    """Leaves every `every`-th recorded step of a segment and those around events.

    `event_steps` is sorted. Steps are chosen by number, so that tables keep the same ones.
    Updates `segment`, returns whether the file changed. Raises OSError, the file being as before.
    """
    segment.kept_every, before = every, segment.kept_every
    try:
        rows = SegmentReader(segment.path, segment.table).poll()
        if rows is None:
            return False
        steps = as_numpy(rows.column("step"))
        distinct = np.unique(steps)
        if len(distinct) > 1 and not segment.thinned:
            segment.stride = max(1, int(np.median(np.diff(distinct))))
        # A table measured at every 50th step has to lose nine of ten of those.
        residues, counts = np.unique(distinct % segment.stride, return_counts=True)
        kept = (distinct - residues[counts.argmax()]) % (every * segment.stride) == 0
        kept |= _near(distinct, event_steps)
        if kept.all():
            return False
        rows = rows.filter(pa.array(np.isin(steps, distinct[kept])))
        segment.size = _replace(segment, rows)
    except OSError:
        segment.kept_every = before
        raise
    segment.thinned = True
    return True


def _near(steps: npt.NDArray[np.int64], events: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    if not len(events):
        return np.zeros(len(steps), np.bool_)
    following = np.searchsorted(events, steps - AFTER_EVENT)
    near: npt.NDArray[np.bool_] = (following < len(events)) & (
        events[np.minimum(following, len(events) - 1)] <= steps + BEFORE_EVENT
    )
    return near


def _replace(segment: Segment, rows: Any) -> int:
    """Writes `rows` in place of the segment, in one step for a reader; returns the new size."""
    if not rows.num_rows:
        segment.path.unlink(missing_ok=True)
        return 0
    sink = pa.BufferOutputStream()
    metadata = {"first_step": str(segment.first_step), "kept_every": str(segment.kept_every)}
    schema, options = SCHEMAS[segment.table].with_metadata(metadata), write_options(segment.table)
    with pa.ipc.new_stream(sink, schema, options=options) as stream:
        stream.write_batch(rows)
    data = memoryview(sink.getvalue())
    # The data this replaces may have been on the disk for long.
    write_atomically(segment.path, data, durable=True)
    return len(data)
