"""Small runs, written to disk step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradtrace.records import (
    MOMENT_COLUMNS,
    LayerTable,
    RunInfo,
    RunNote,
    SkippedStep,
    StepRecord,
)
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.reader import load_run
from gradtrace.runlog.writer import RunLog


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(step: int, layers: tuple[str, ...] | None = None) -> StepRecord:
    """A step with gradients of these layers, else of one to three, in turn."""
    names = tuple(f"layer{i}" for i in range(1 + step % 3)) if layers is None else layers
    values = np.full((len(names), 6), float(step))
    gradients = LayerTable(names, values, MOMENT_COLUMNS)
    return StepRecord(step, float(step), loss=0.5, gradients=gradients)


def skipped(step: int, scale: float = 1.0) -> SkippedStep:
    return SkippedStep(step=step, time=0.0, severity="info", message="", scale=scale)


def note(step: int) -> RunNote:
    return RunNote(step=step, time=0.0, severity="info", message="", source="")


def open_log(path: Path, **options: Any) -> RunLog:
    """A log in the run directory `path`, which is there already."""
    return RunLog(path, RunInfo("run", 5.0, path), **options)


def new_log(directory: Path, **options: Any) -> RunLog:
    """The log of a new run in `directory`, which writes when it is told to."""
    return open_log(create_run_directory(directory, "run"), flush_seconds=1e9, **options)


def write(log: RunLog, *steps: int) -> None:
    """Each step in a batch of its own."""
    for step in steps:
        log.append([record(step)])
        log.flush()


def numbers(path: Path) -> list[int]:
    return [item.step for item in load_run(path).records() if isinstance(item, StepRecord)]
