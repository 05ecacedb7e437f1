"""Delivering what a finished, killed or offline run still owes: `gradtrace send`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from gradtrace.exporter import Exporter
from gradtrace.pipeline.adapter import Adapter
from gradtrace.pipeline.position import Cursor, Position
from gradtrace.pipeline.queue import BATCH, Backlog
from gradtrace.records import Record, RunInfo, StepRecord

logger = logging.getLogger("gradtrace")


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one call delivered."""

    steps: int
    events: int


def deliver(
    backlog: Backlog,
    info: RunInfo,
    exporter: Exporter,
    *,
    name: str | None = None,
    again: bool = False,
    tries: int = 4,
    pause: Callable[[float], None] = time.sleep,
) -> Delivered:
    """Sends everything after the exporter's cursor, in the caller's thread.

    `name` is the exporter's name in its trace, where two of a kind are told apart ("mlflow-2").
    `again` starts from the beginning, where an exporter that makes one thing of the whole run
    always starts. Each batch is tried `tries` times with growing pauses; the last error is raised,
    and the cursor stands where it got to, so a later call goes on there. Where the run directory
    cannot be written to, a warning is logged before anything is sent, and a later call sends all of
    this again.
    """
    adapter = Adapter(exporter, name)
    cursor = _Kept(adapter.cursor(info.path))
    stored = cursor.load()
    position = Position() if again else stored
    settling = adapter.settling > 0
    if settling and not backlog.read_since(position.step, position.event, 1)[0]:
        return Delivered(0, 0)
    cursor.save(stored)
    adapter.open(info)
    steps = events = 0
    try:
        if adapter.remembers and position != Position():
            _remember(backlog, adapter, position)
        while True:
            records, step, event = backlog.read_since(position.step, position.event, BATCH)
            if not records:
                break
            for attempt in range(tries):
                try:
                    adapter.export(records)
                    break
                except Exception:
                    if attempt + 1 == tries:
                        raise
                    pause(0.5 * 2**attempt)
            position = Position(step, event)
            if not settling:
                cursor.save(position)
            done = sum(isinstance(record, StepRecord) for record in records)
            steps, events = steps + done, events + len(records) - done
    except BaseException:
        with contextlib.suppress(Exception):  # what went wrong first is told
            adapter.close()
        raise
    adapter.close()
    if settling:
        cursor.save(position)
    return Delivered(steps, events)


class _Kept:
    """A cursor that is no longer stored once that has failed, which is logged."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor: Cursor | None = cursor
        self.load = cursor.load

    def save(self, position: Position) -> None:
        """Stores the position. Never raises OSError."""
        if self._cursor is None:
            return
        try:
            self._cursor.save(position)
        except OSError as error:
            self._cursor = None
            logger.warning(
                "how far the delivery has got cannot be stored (%s): it goes on, but a later one "
                "sends the same again; make the run directory writable to avoid that",
                error,
            )


def _remember(backlog: Backlog, adapter: Adapter, until: Position) -> None:
    """Shows the exporter what it has delivered before."""
    seen = Position()
    while seen.step < until.step or seen.event < until.event:
        records, step, event = backlog.read_since(seen.step, seen.event, BATCH)
        if not records:
            return
        known: list[Record] = []
        number = seen.event
        for record in records:
            if isinstance(record, StepRecord):
                if record.step < until.step:
                    known.append(record)
            else:
                if number < until.event:
                    known.append(record)
                number += 1
        adapter.remember(known)
        seen = Position(step, event)
