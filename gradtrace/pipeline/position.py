"""How far each exporter has got: a small file per exporter in the run directory."""

from __future__ import annotations

import contextlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gradtrace.records import Record, StepRecord
from gradtrace.runlog.atomic import write_atomically

FOLDER = "cursors"
STORE_EVERY = 0.2
"""Seconds between two writes of a cursor, at least."""


@dataclass(frozen=True, slots=True)
class Position:
    """The first step number not yet delivered, and how many events have been."""

    step: int = 0
    event: int = 0

    def after(self, records: Iterable[Record]) -> Position:
        """The position behind these records, which begin here."""
        step, event = self.step, self.event
        for record in records:
            if isinstance(record, StepRecord):
                step = record.step + 1
            else:
                event += 1
        return Position(step, event)

    def reached(self, goal: Position) -> bool:
        """Whether nothing before `goal` is missing."""
        return self.step >= goal.step and self.event >= goal.event


def safe_name(name: str) -> str:
    """The name as part of a file name, at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100] or "_"


class Cursor:
    """The stored position of one exporter; with `run` None it is kept in memory only."""

    def __init__(self, run: Path | None, name: str) -> None:
        self.path = None if run is None else run / FOLDER / f"{safe_name(name)}.json"

    def load(self) -> Position:
        """The stored position; the beginning when there is none or the file is damaged."""
        if self.path is None:
            return Position()
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            return Position(max(0, int(data["step"])), max(0, int(data["event"])))
        except (OSError, ValueError, KeyError, TypeError):
            return Position()

    def save(self, position: Position) -> None:
        """Stores the position, atomically. Raises OSError when the disk refuses."""
        if self.path is None:
            return
        self.path.parent.mkdir(exist_ok=True)
        write_atomically(self.path, json.dumps({"step": position.step, "event": position.event}))


class Progress:
    """Stores how far a running delivery has got: not for each batch, and only what is safe.

    What was delivered is safe after `settling` seconds, or once all of it is (`settle`). One
    thread, the exporter's.
    """

    def __init__(self, cursor: Cursor, settling: float, clock: Callable[[], float]) -> None:
        self._cursor = cursor
        self._settling = settling
        self._clock = clock
        self._done = Position()
        self._safe = Position()
        self._unsettled: deque[tuple[float, Position]] = deque()
        self._stored = Position()
        self._stored_at = clock()

    @property
    def pause(self) -> float | None:
        """Seconds after which there may be something to store; None when all is stored."""
        return None if self._done == self._stored else max(STORE_EVERY, self._settling / 4)

    def advance(self, position: Position) -> None:
        """All before `position` is delivered."""
        if self._settling and position != self._done:
            self._unsettled.append((self._clock(), position))
        self._done = position

    def settle(self) -> None:
        """All that was delivered is safe."""
        self._settling = 0.0

    def store(self, *, at_once: bool = False) -> None:
        """Stores what is safe by now, unless that was done a moment ago. Never raises OSError."""
        safe, now = self._safe_by_now(), self._clock()
        if safe != self._stored and (at_once or now - self._stored_at >= STORE_EVERY):
            with contextlib.suppress(OSError):  # a full disk; the run log tells the user
                self._cursor.save(safe)
            self._stored, self._stored_at = safe, now

    def _safe_by_now(self) -> Position:
        if not self._settling:
            return self._done
        now = self._clock()
        while self._unsettled and self._unsettled[0][0] <= now - self._settling:
            self._safe = self._unsettled.popleft()[1]
        return self._safe
