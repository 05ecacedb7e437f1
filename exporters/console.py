"""The run in the terminal: one live line, and what went wrong above it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from numbers import Real
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gradtrace.metrics.totals import Totals
from gradtrace.records import Event, Record, RunInfo, StepRecord

STYLES = {"warning": "yellow", "error": "bold red"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would send the whole program's standard output to nowhere, and exit.
        raise BrokenPipeError("nobody reads the stream")


class ConsoleExporter:
    """Shows step, loss, gradient norm, share of clipped steps, spikes and overhead.

    On a terminal one line is kept up to date, at most each `refresh` seconds; elsewhere a plain
    line is written at most each `interval` seconds, and one at the end. Events of severity
    warning and error are written above it. Of several ranks only rank 0 has the line; all write
    their events. `stream` is standard error unless given, so that a program's own output stays
    clean. A terminal that goes away ends the output, nothing else.

    Raises TypeError for times that are no numbers and a stream that cannot be written to,
    ValueError for times that are negative or NaN.
    """

    name = "console"

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        interval: float = 10.0,
        refresh: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("interval", interval), ("refresh", refresh)):
            advice = (
                f"{name} is {value!r}; expected a number of seconds, 0 or more: leave it out for "
                "the default"
            )
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(advice)
            if not value >= 0:
                raise ValueError(advice)
        if stream is not None and not callable(getattr(stream, "write", None)):
            raise TypeError(
                f"stream is {stream!r}; expected a text stream such as sys.stdout: open a file "
                "first, stream=open(path, 'w')"
            )
        self._stream = stream
        self._interval = interval
        self._refresh = refresh
        self._clock = clock
        self._totals = Totals()
        self._seconds = 0.0
        self._overhead = 0.0
        self._last: StepRecord | None = None
        self._shown: StepRecord | None = None
        self._shown_at: float | None = None
        self._rank = 0
        self._live: Live | None = None
        self._console = Console(quiet=True)

    def open(self, run: RunInfo) -> None:
        """Starts the line."""
        self._rank = run.rank
        self._console = _Console(
            file=self._stream or sys.stderr, highlight=False, markup=False, soft_wrap=True
        )
        if self._rank:
            return
        where = "" if run.path is None else f", recorded in {run.path}"
        self._write(f"gradtrace: run {run.name}{where}")
        if self._console.is_terminal and not self._console.quiet:
            # The program's own streams stay as they are: they are not ours to replace.
            live = Live(
                Text(""),
                console=self._console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._guarded(live.start)
            self._live = None if self._console.quiet else live

    def export(self, records: Sequence[Record]) -> None:
        """Brings the line up to date. Never raises for the terminal's sake."""
        for record in records:
            self._totals.update(record)
            if isinstance(record, Event):
                self._tell(record)
                continue
            self._last = record
            if record.seconds is not None:
                self._seconds += record.seconds
                self._overhead += record.overhead
        self._show(final=False)

    def close(self) -> None:
        """Leaves the last line standing."""
        self._show(final=True)
        if self._live is not None:
            self._guarded(self._live.stop)
            self._live = None

    def line(self) -> str:
        """The line as it stands. Overhead is the share of the time between steps."""
        values = self._totals.values()
        parts = [f"step {int(values.get('step', 0))}"]
        if "loss" in values:
            parts.append(f"loss {values['loss']:.4g}")
        if "grad_norm" in values:
            parts.append(f"norm {values['grad_norm']:.3g}")
        parts.append(f"clipped {values.get('clip/fraction', 0.0):.0%}")
        parts.append(f"spikes {int(values['spikes'])}")
        for key, word in (("nonfinite_steps", "non-finite"), ("skipped_steps", "skipped")):
            if values[key]:
                parts.append(f"{word} {int(values[key])}")
        if self._seconds > 0:
            parts.append(f"overhead {self._overhead / self._seconds:.1%}")
        return " | ".join(parts)

    def _tell(self, event: Event) -> None:
        if event.severity != "info":
            rank = f"rank {self._rank}, " if self._rank else ""
            self._write(f"{rank}step {event.step}: {event.message}", STYLES[event.severity])

    def _show(self, *, final: bool) -> None:
        if self._last is self._shown or self._rank:
            return
        now = self._clock()
        pause = self._interval if self._live is None else self._refresh
        if not final and self._shown_at is not None and now - self._shown_at < pause:
            return
        self._shown, self._shown_at = self._last, now
        if self._live is None:
            self._write(self.line())
        else:
            text = Text(self.line(), no_wrap=True, overflow="ellipsis")
            live = self._live
            self._guarded(lambda: live.update(text, refresh=True))

    def _write(self, text: str, style: str = "") -> None:
        shown = Text(self._printable(text), style=style)
        self._guarded(lambda: self._console.print(shown))

    def _printable(self, text: str) -> str:
        """The text without what would steer the terminal or what the stream cannot encode."""
        plain = "".join(c if c.isprintable() else " " for c in text)
        encoding = self._console.encoding
        return plain.encode(encoding, "replace").decode(encoding, "replace")

    def _guarded(self, write: Callable[[], object]) -> None:
        """Writes; a closed terminal or stream ends the output: nobody is looking any more."""
        try:
            write()
        except (OSError, ValueError):
            self._live = None
            self._console = Console(quiet=True)
