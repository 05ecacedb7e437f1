"""What could not be observed, and why; or what went wrong inside gradtrace."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from gradtrace.records import Event, Record, RunNote

logger = logging.getLogger("gradtrace")

MOST = 1000
"""Different notes of one run; more say nothing new."""


class Notes:
    """The notes of one run, each text once. Any thread.

    `add` only remembers a note; the background thread fetches it with `take` and sends it on its
    way. `step` tells how many steps have been recorded, for a note has a step as any event.
    """

    def __init__(
        self, *, rank: int, step: Callable[[], int], clock: Callable[[], float] = time.time
    ) -> None:
        self._rank = rank
        self._step = step
        self._clock = clock
        self._all: list[RunNote] = []
        self._messages: set[str] = set()
        # Held for the look at a set only. A signal handler that closes a trace may take it again.
        self._lock = threading.RLock()
        self._waiting: deque[RunNote] = deque()

    def add(self, source: str, message: str, *, warn: bool = False) -> None:
        """Notes something about `source`, and logs it as a warning if `warn`.

        A text that was noted before is not noted again, and neither is anything beyond MOST.
        """
        note = RunNote(
            step=self._step(),
            time=self._clock(),
            severity="warning",
            message=message,
            rank=self._rank,
            source=source,
        )
        if self._kept(note):
            self._waiting.append(note)
            if warn:
                logger.warning("%s", message)

    def see(self, records: Sequence[Record]) -> None:
        """Takes in the notes that detectors made, which are on their way already."""
        for record in records:
            if isinstance(record, RunNote):
                self._kept(record)

    def _kept(self, note: RunNote) -> bool:
        """Keeps a note, unless its text is known or there are too many; whether it did."""
        with self._lock:
            if note.message in self._messages or len(self._all) >= MOST:
                return False
            self._messages.add(note.message)
            self._all.append(note)
            return True

    def take(self) -> list[Event]:
        """The notes that are not on their way yet, oldest first."""
        taken: list[Event] = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def all(self) -> list[RunNote]:
        """Every note, oldest first."""
        return list(self._all)
