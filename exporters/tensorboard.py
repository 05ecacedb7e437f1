"""The run in TensorBoard: one event of scalars a step, and texts for what happened."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from gradtrace.exporters._checks import checked_path, needed
from gradtrace.exporters._keys import flat_params, run_mark, spelt
from gradtrace.exporters._retry import Unsent
from gradtrace.metrics.layers import Layers, check_layers
from gradtrace.metrics.run_summary import RunTotals
from gradtrace.metrics.step_values import PREFIX, StepValues
from gradtrace.records import Event, Record, RunInfo, Spike, StepRecord

logger = logging.getLogger("gradtrace")

_files = count()
MAX_TEXT = 4000
SUFFIX = ".gradtrace"
"""How the names of our own event files end."""


class TensorBoardExporter:
    """Writes an event file to `directory`: the log directory of this run, as TensorBoard means it.

    Without one it is `tensorboard` in the run directory, so `tensorboard --logdir gradtrace-runs`
    compares all runs. Each step is one event with all its scalars, at the step's own time; events
    of severity warning and error, and the hyper-parameters, are texts. The summary stands one step
    behind the last. On steps that `Sampling(histograms=...)` samples, the same event holds the
    layers' gradients as histograms, whose `min` and `max` are edges of bins. Ranks above 0 write to
    a folder `rankN` in it. `layers`: how many layers beside the groups, or globs over their names.
    TensorBoard keeps scalars as float32, NaN and Inf too.

    In a directory that holds event files of others when the trace starts, such as those of your
    own SummaryWriter, it writes to the folder `gradtrace`, and where there are files of another
    traced run, to a folder with this run's name: TensorBoard shows them as runs side by side. A
    file that gradtrace continues (`gradtrace send`) takes the place of what an earlier file of the
    same run in that folder has of the same steps. A disk that refuses leaves the file as it was
    after the last whole step.

    Raises ImportError where tensorboard is not installed, TypeError or ValueError for wrong
    settings; `open` raises OSError where the folder cannot be written, ValueError where there is
    neither a directory nor a run directory.
    """

    name = "tensorboard"

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, layers: Layers = 20
    ) -> None:
        expected = "the path of a log directory: or leave it out"
        self._directory = (
            None if directory is None else checked_path("directory", directory, expected)
        )
        self._event, self._crc = needed(
            "tensorboard.compat.proto.event_pb2",
            "google_crc32c",
            by="TensorBoardExporter",
            extra="tensorboard",
        )
        self._layers = check_layers(layers)
        self._file: BinaryIO | None = None
        self._path: Path | None = None

    def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
        """The directory, for `gradtrace send`."""
        return {}, [] if self._directory is None else [str(self._directory)]

    @property
    def path(self) -> Path | None:
        """The event file; None until the trace starts. Any thread."""
        return self._path

    def open(self, run: RunInfo) -> None:
        """Makes the file. Raises OSError where that fails."""
        self._run = run
        self._values = StepValues(run, layers=self._layers, finite=False)
        self._totals = RunTotals()
        self._unsent: Unsent[Any] | None = None
        self._last: StepRecord | None = None
        self._begun = False
        folder = self._folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard follows one file a folder, and a restart hides what anybody wrote in it.
        if not all(name.endswith(SUFFIX) for name in _event_files(folder)):
            folder /= "gradtrace"
            folder.mkdir(exist_ok=True)
        ending = f".{run_mark(run)[:8]}{SUFFIX}"
        if not all(name.endswith(ending) for name in _event_files(folder)):
            folder /= re.sub(r"[^A-Za-z0-9_-]", "_", run.name)[:100]
            folder.mkdir(exist_ok=True)
        self._continues = bool(_event_files(folder))
        # TensorBoard reads files in the order of their names: within a second, too, ours rise.
        name = f"{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self._path = folder / f"events.out.tfevents.{name}{ending}"
        # Unbuffered, so that what was written and what was not is known.
        self._file = self._path.open("xb", buffering=0)
        self._good = 0
        self._write([self._event.Event(wall_time=time.time(), file_version="brain.Event:2")])

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """Sends along how many records the trace's exporters have lost."""
        self._values.watch(dropped)

    def export(self, records: Sequence[Record]) -> None:
        """Writes the records, all or none. Raises OSError when the disk refuses."""
        if self._unsent is None or not self._unsent.holds(records):
            self._unsent = Unsent(records, [e for r in records for e in self._events(r)])
        self._write(self._unsent.rows)
        self._unsent = None

    def remember(self, records: Sequence[Record]) -> None:
        """Counts what an earlier process has written."""
        for record in records:
            self._values.update(record)
            self._totals.update(record)
            if isinstance(record, StepRecord):
                self._last = record  # the summary may be all that is missing

    def close(self) -> None:
        """Writes the summary, unless steps are left that the disk did not take; ends the file."""
        if self._file is None:
            return
        try:
            if self._last is not None and self._unsent is None:
                values = self._totals.values()
                self._write([self._scalars(self._last.step + 1, self._last.time, values)])
        except OSError as error:
            logger.warning(
                "exporter tensorboard could not write the summary of run %s: %s",
                self._run.name,
                error,
            )
        finally:
            self._file.close()
            self._file = None

    def _folder(self, run: RunInfo) -> Path:
        if self._directory is not None:
            return self._directory / f"rank{run.rank}" if run.rank else self._directory
        if run.path is None:
            raise ValueError(
                "got neither a directory nor a run directory, for the trace has none or could not "
                "make it; expected one of them: write TensorBoardExporter(directory)"
            )
        return run.path / "tensorboard"

    def _events(self, record: Record) -> list[Any]:
        values = self._values.update(record)
        self._totals.update(record)
        if isinstance(record, StepRecord):
            found = [] if self._begun else self._begin(record)
            self._last = record
            event = self._scalars(record.step, record.time, values or {})
            for key, (counts, edges) in self._values.histograms(record).items():
                histogram = event.summary.value.add(tag=key).histo
                histogram.min, histogram.max = edges[0], edges[-1]
                histogram.num = counts.sum()
                histogram.bucket.extend(counts)
                histogram.bucket_limit.extend(edges[1:])
            return [*found, event]
        if record.severity == "info":
            return []
        return [
            self._text(record.step, record.time, f"{PREFIX}events/{record.kind}", _said(record))
        ]

    def _begin(self, record: StepRecord) -> list[Any]:
        """Says that steps of earlier files, if any, count no more from here on; what the run is."""
        self._begun = True
        found: list[Any] = []
        if self._continues:
            log = self._event.SessionLog(status=self._event.SessionLog.START)
            found.append(
                self._event.Event(wall_time=record.time, step=record.step, session_log=log)
            )
        if record.step or not self._run.config:
            return found
        rows = [
            f"| `{_cell(k)}` | `{_cell(v)}` |" for k, v in flat_params(self._run.config).items()
        ]
        table = "\n".join(["| parameter | value |", "|---|---|", *rows])
        return [*found, self._text(record.step, record.time, f"{PREFIX}config", table)]

    def _scalars(self, step: int, when: float, values: dict[str, float]) -> Any:
        event = self._event.Event(wall_time=when, step=step)
        add = event.summary.value.add
        for key, value in values.items():
            add(tag=key, simple_value=value)
        return event

    def _text(self, step: int, when: float, tag: str, text: str) -> Any:
        event = self._event.Event(wall_time=when, step=step)
        value = event.summary.value.add(tag=tag)
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.dtype = 7  # DT_STRING
        value.tensor.string_val.append(spelt(text).encode())
        return event

    def _write(self, events: Sequence[Any]) -> None:
        assert self._file is not None
        data = memoryview(b"".join(self._framed(event.SerializeToString()) for event in events))
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            # Half a record would hide all that comes behind it.
            with contextlib.suppress(OSError):
                self._file.truncate(self._good)
                self._file.seek(self._good)
            raise
        self._good = self._file.tell()

    def _framed(self, data: bytes) -> bytes:
        """A record as event files have it: length, checksum, data, checksum."""
        length = struct.pack("<Q", len(data))
        return b"".join((length, self._checksum(length), data, self._checksum(data)))

    def _checksum(self, data: bytes) -> bytes:
        """CRC-32C, rotated and moved, so that it may checksum itself: that of TensorFlow's records.

        TensorBoard's own is a Python loop over bytes: 3 ms, with the GIL held, for a step's values.
        """
        crc: int = self._crc.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _event_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "tfevents" in path.name]


def _said(event: Event) -> str:
    # Four spaces in front make it plain text, where Markdown would have marks.
    lines = event.message[:MAX_TEXT].splitlines()
    blamed = event.blamed if isinstance(event, Spike) else ()
    ids = [id_ for ref in blamed for id_ in ref.sample_ids or ()]
    if ids:
        lines.append(f"samples: {json.dumps(ids)[:MAX_TEXT]}")
    return "\n".join(f"    {line}" for line in lines)


def _cell(text: str) -> str:
    """Text for a table's cell in backticks."""
    return "".join(" " if c in "`|\r\n" or not c.isprintable() else c for c in text)
