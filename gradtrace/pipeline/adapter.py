"""An exporter with everything that it need not have: the one place where that is asked."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gradtrace.exporter import Exporter, Hurried, Remembering, Resent, Watching
from gradtrace.pipeline.position import Cursor
from gradtrace.records import Record, RunInfo


class Adapter:
    """An exporter under its `name` in a trace; what it lacks of the optional hooks does nothing.

    `settling` and `whole` are as in `gradtrace.exporter`. Errors are the exporter's own.
    """

    def __init__(self, exporter: Exporter, name: str | None = None) -> None:
        self.exporter = exporter
        self.name = name or exporter.name
        self.settling = float(getattr(exporter, "settling", 0.0))
        self.whole = bool(getattr(exporter, "whole", False))

    def open(self, run: RunInfo) -> None:
        """Tells it its name, if it wants to know, and opens it."""
        if hasattr(self.exporter, "known_as"):
            self.exporter.known_as = self.name
        self.exporter.open(run)

    def export(self, records: Sequence[Record]) -> None:
        """Exports."""
        self.exporter.export(records)

    def close(self) -> None:
        """Closes it."""
        self.exporter.close()

    def cursor(self, run: Path | None) -> Cursor:
        """Where its position is stored; nowhere for one that makes one thing of the whole run."""
        return Cursor(None if self.whole else run, self.name)

    @property
    def remembers(self) -> bool:
        """Whether it wants to see what was delivered before."""
        return isinstance(self.exporter, Remembering)

    def remember(self, records: Sequence[Record]) -> None:
        """Shows it what an earlier process has delivered."""
        if isinstance(self.exporter, Remembering):
            self.exporter.remember(records)

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """Tells it where to ask how many records each exporter has lost."""
        if isinstance(self.exporter, Watching):
            self.exporter.watch(dropped)

    def hurry(self) -> bool:
        """Asks a `close` that takes its time to return; False for one that cannot be asked."""
        if not isinstance(self.exporter, Hurried):
            return False
        self.exporter.hurry()
        return True

    def send_command(self, run: str) -> str:
        """The command line that delivers later what it owes."""
        exporter = self.exporter
        environment, arguments = exporter.resent() if isinstance(exporter, Resent) else ({}, ())
        words = [f"{key}={shlex.quote(value)}" for key, value in environment.items()]
        words += ["gradtrace", "send", shlex.quote(run), "--to", self.name]
        return " ".join([*words, *map(shlex.quote, arguments)])
