"""The run in the terminal: one live line, and what went wrong above it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gradtrace.metrics import Totals
from gradtrace.records import Event, Record, RunInfo, StepRecord


class ConsoleExporter:
    """Shows step, loss, gradient norm, share of clipped steps, spikes and overhead.

    On a terminal one line is kept up to date; elsewhere a plain line is written each `interval`
    seconds and one at the end. Events of severity warning and error are written above it.
    `stream` is standard error unless given, so that a program's own output stays clean.
    """

    name = "console"

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not interval >= 0:
            raise ValueError(f"interval is {interval!r}; expected a number of seconds >= 0")
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._totals = Totals()
        self._seconds = 0.0
        self._last: StepRecord | None = None
        self._live: Live | None = None
        self._shown_at: float | None = None
        self._shown_step = -1
        self._console = Console()

    def open(self, run: RunInfo) -> None:
        """Starts the line."""
        self._console = Console(
            file=self._stream or sys.stderr, highlight=False, markup=False, soft_wrap=True
        )
        where = "" if run.path is None else f", recorded in {run.path}"
        self._write(Text(f"gradtrace: run {run.name}{where}"))
        if self._console.is_terminal:
            self._live = Live(
                Text(""), console=self._console, auto_refresh=False, redirect_stdout=False
            )
            self._live.start()

    def export(self, records: Sequence[Record]) -> None:
        """Brings the line up to date."""
        for record in records:
            self._totals.update(record)
            if isinstance(record, StepRecord):
                self._last = record
                self._seconds += record.seconds or 0.0
            elif isinstance(record, Event) and record.severity != "info":
                self._write(Text(f"step {record.step}: {record.message}", style="yellow"))
        self._show(final=False)

    def close(self) -> None:
        """Leaves the last line standing."""
        self._show(final=True)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, *, final: bool) -> None:
        if self._last is None:
            return
        if self._live is not None:
            self._live.update(Text(self.line(), no_wrap=True, overflow="ellipsis"), refresh=True)
            return
        now = self._clock()
        due = self._shown_at is None or now - self._shown_at >= self._interval
        if (due or final) and self._last.step != self._shown_step:
            self._shown_at, self._shown_step = now, self._last.step
            self._write(Text(self.line()))

    def line(self) -> str:
        """The line as it stands."""
        values = self._totals.values()
        parts = [f"step {int(values.get('step', 0))}"]
        if "loss" in values:
            parts.append(f"loss {values['loss']:.4f}")
        if "grad_norm" in values:
            parts.append(f"norm {values['grad_norm']:.3g}")
        parts.append(f"clipped {values.get('clip/fraction', 0.0):.0%}")
        parts.append(f"spikes {int(values.get('spikes', 0))}")
        for key, word in (("nonfinite_steps", "non-finite"), ("skipped_steps", "skipped")):
            if values.get(key):
                parts.append(f"{word} {int(values[key])}")
        if self._seconds > 0:
            parts.append(f"overhead {values['overhead_seconds'] / self._seconds:.1%}")
        return " · ".join(parts)

    def _write(self, text: Text) -> None:
        try:
            self._console.print(text)
        except (OSError, ValueError):
            # A closed terminal or stream: nobody is looking any more.
            self._live = None
            self._console = Console(quiet=True)
