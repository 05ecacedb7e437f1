"""Records and workers for the tests of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from gradtrace.exporter import Exporter
from gradtrace.pipeline.adapter import Adapter
from gradtrace.pipeline.worker import ExporterWorker
from gradtrace.records import Record, RunNote, StepRecord
from gradtrace.testing import MemoryBacklog, RecordingExporter

SOON = 30.0
"""A bound for failures only: nothing here takes that long."""


def step(number: int) -> StepRecord:
    return StepRecord(step=number, time=0.0)


def note(number: int) -> RunNote:
    return RunNote(step=number, time=0.0, severity="info", message=f"{number}", source="test")


def numbers(exporter: RecordingExporter) -> list[int]:
    return [record.step for record in exporter.steps]


def soon() -> Iterator[float]:
    """Pauses that leave the other threads room."""
    return repeat(0.001)


def never() -> Iterator[float]:
    """Pauses that only the end of the trace interrupts."""
    return repeat(3600.0)


def started(exporter: Exporter, *, run: Path | None = None, **options: Any) -> ExporterWorker:
    """A worker for this exporter, running; its cursor is in `run`."""
    adapter = Adapter(exporter)
    chosen: dict[str, Any] = {"pauses": soon, "cursor": adapter.cursor(run)} | options
    worker = ExporterWorker(adapter, **chosen)
    worker.start()
    return worker


def ended(worker: ExporterWorker, timeout: float = SOON) -> str:
    """Closes it; what it still owes, in words."""
    worker.begin_close()
    worker.join(timeout)
    return worker.debt


def give(worker: ExporterWorker, backlog: MemoryBacklog, *records: Record) -> None:
    """What the background thread does: the log first, then the exporters."""
    backlog.append(records)
    backlog.flush()
    worker.offer(records)


class Settling(RecordingExporter):
    """Hands what it gets to somebody who writes it down some seconds later."""

    settling = 2.0
