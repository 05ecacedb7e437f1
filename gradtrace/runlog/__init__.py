"""The run log: the truth on disk about a run, written by one thread and read by anyone."""

from __future__ import annotations

from gradtrace.runlog.reader import Backlog, Run, RunSummary, list_runs, load_run
from gradtrace.runlog.writer import RunLog, create_run_directory

__all__ = [
    "Backlog",
    "Run",
    "RunLog",
    "RunSummary",
    "create_run_directory",
    "list_runs",
    "load_run",
]
