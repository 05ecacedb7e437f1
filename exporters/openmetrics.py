"""A run as a file for Prometheus' backfilling: every step's values, with their times."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from gradtrace.exporters._checks import check_max_series, checked_path
from gradtrace.exporters._exposition import head, label_texts, number
from gradtrace.metrics.layers import Layers, check_layers
from gradtrace.metrics.samples import RunSamples
from gradtrace.metrics.table import METRICS
from gradtrace.records import Record, RunInfo, StepRecord

BUFFERED = 100_000
"""Samples that are kept in memory."""


class OpenMetricsExporter:
    """Writes `file` in the OpenMetrics format, when it is closed.

    `promtool tsdb create-blocks-from openmetrics FILE DATA` imports it. Prometheus has
    milliseconds: of steps within one, the last is kept. `layers`: how many layers beside the
    groups, or globs over their names. The format wants each series in one piece: until the end
    they are in temporary files beside `file`, so memory is bounded; `file` is replaced in one go.

    Raises TypeError or ValueError for wrong settings; `open` raises OSError where the folder
    cannot be written, `close` where the file cannot.
    """

    name = "openmetrics"
    whole = True
    """It makes one thing of the whole run: there is no such thing as the rest of it."""

    def __init__(
        self, file: str | os.PathLike[str], *, layers: Layers = 20, max_series: int = 1000
    ) -> None:
        check_max_series(max_series)
        self._target = checked_path("file", file, "the path of a file to write")
        self._layers = check_layers(layers)
        self._max_series = max_series
        self._stack = contextlib.ExitStack()
        self._open = False

    def open(self, run: RunInfo) -> None:
        """Makes the temporary files. Raises OSError where that fails."""
        folder = tempfile.TemporaryDirectory(prefix=".gradtrace-", dir=self._target.parent)
        self._folder = Path(self._stack.enter_context(folder))
        self._samples = RunSamples(
            run, layers=self._layers, max_series=self._max_series, keep=False
        )
        self._texts = label_texts(self._max_series)
        self._at: int | None = None
        self._series: dict[str, dict[str, _Series]] = {}
        self._buffered = 0
        self._open = True
        self._broken = False

    def export(self, records: Sequence[Record]) -> None:
        """Takes records in. Raises OSError when the disk refuses; `file` is then left as it is."""
        if self._broken:
            raise OSError("an earlier write failed: export the run anew")
        self._broken = True
        for record in records:
            if isinstance(record, StepRecord):
                # What is known of a step is complete when the next one comes. A clock that is set
                # back does not make samples that are older than the last one.
                when = round(record.time * 1000)
                if self._at is not None and when > self._at:
                    self._write(self._at)
                self._at = when if self._at is None else max(self._at, when)
            self._samples.update(record)
        self._broken = False

    def close(self) -> None:
        """Puts the file together. Raises OSError where that fails; an older file is then intact."""
        if not self._open:
            return
        self._open = False
        with self._stack:
            if self._broken:
                return
            if self._at is not None:
                self._write(self._at)
            whole = self._folder / "whole"
            with whole.open("wb") as out:
                for metric in METRICS:
                    series = self._series.get(metric.prometheus, {})
                    if series:
                        out.write(("\n".join(head(metric, openmetrics=True)) + "\n").encode())
                    for one in series.values():
                        one.copy(out)
                out.write(b"# EOF\n")
            os.replace(whole, self._target)

    def _write(self, milliseconds: int) -> None:
        when = f"{milliseconds / 1000:.3f}"
        for metric, samples in self._samples.families():
            known = self._series.setdefault(metric.prometheus, {})
            for labels, value, _ in samples:
                text = self._texts[labels]
                one = known.get(text)
                if one is None:
                    path = self._folder / f"{metric.prometheus}-{len(known)}"
                    one = known[text] = _Series(metric.prometheus + text, path)
                one.lines.append(f"{number(value)} {when}")
                self._buffered += 1
        if self._buffered >= BUFFERED:
            self._buffered = 0
            for known in self._series.values():
                for one in known.values():
                    one.save()


class _Series:
    """One series: its newest samples in memory, the others in a file."""

    def __init__(self, name: str, path: Path) -> None:
        self.lines: list[str] = []
        self._name = name
        self._path = path

    def save(self) -> None:
        """Moves the samples to the file."""
        with self._path.open("ab") as out:
            out.write(self._taken())

    def copy(self, out: BinaryIO) -> None:
        """Writes all of it."""
        if self._path.exists():
            with self._path.open("rb") as lines:
                shutil.copyfileobj(lines, out)
        out.write(self._taken())

    def _taken(self) -> bytes:
        text = "".join(f"{self._name} {line}\n" for line in self.lines)
        self.lines.clear()
        return text.encode("utf-8", "replace")
