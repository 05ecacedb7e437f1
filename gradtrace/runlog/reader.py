"""Reading a run directory: while it is being written, after the end, and after `kill -9`."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradtrace.records import Event, Record
from gradtrace.runlog.backlog import Events, Steps
from gradtrace.runlog.schema import PLAIN_SCHEMAS, STEPS
from gradtrace.runlog.segments import SegmentReader, segments
from gradtrace.runlog.status import INFO_FILE, read_info, status_of


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
        return read_info(self.path)

    @functools.cached_property
    def events(self) -> list[Event]:
        """All events, in the order they were written."""
        source = Events(self.path)
        found: list[Event] = []
        while (event := source.get(len(found))) is not None:
            found.append(event)
        return found

    @property
    def status(self) -> str:
        """As in `run.json`, but "killed" when the process of a running run is gone."""
        return status_of(self.info)

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
    def output_gradients(self) -> Any:
        """Gradients arriving at module outputs."""
        return self._table("output_gradients")

    @functools.cached_property
    def updates(self) -> Any:
        """What the optimizer changed."""
        return self._table("updates")

    @functools.cached_property
    def histograms(self) -> Any:
        """How gradients are distributed: `counts` of the bins between `limit * EDGES`.

        A row a layer and step; `counts` has `BINS` numbers, and `EDGES` is
        `gradtrace.records.histograms.EDGES`. The records' `histograms` have edges and counts.
        """
        return self._table("histograms")

    def records(self, first_step: int = 0, first_event: int = 0) -> Iterator[Record]:
        """The records in order by step, steps before events of the same step.

        Leaves out steps below `first_step` and the first `first_event` events. Equal to what was
        appended, but for tables that were thinned away or lost, which are None. Holds a segment
        of each table in memory, not the run.
        """
        steps = Steps(self.path, first_step)
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


def load_run(path: str | os.PathLike[str]) -> Run:
    """The run in directory `path`, finished or not.

    Raises TypeError for what is no path, ValueError when it holds no run.
    """
    if not isinstance(path, (str, os.PathLike)):
        got = "None" if path is None else f"a {type(path).__name__}"
        raise TypeError(
            f"got {got}; expected the path of a run directory: of a trace it is trace.path, which "
            "is None where gradtrace(directory=None) keeps nothing on disk"
        )
    run = Run(Path(path))
    if not run.info:
        raise ValueError(
            f"{str(path)!r} is no run directory: expected a folder with a readable {INFO_FILE}; "
            "give the folder of one run, usually <directory>/<run name>"
        )
    return run
