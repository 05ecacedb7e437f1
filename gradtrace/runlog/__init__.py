"""The run log: the truth on disk about a run, written by one thread and read by anyone."""

from __future__ import annotations

from gradtrace.runlog.backlog import Backlog
from gradtrace.runlog.directory import check_run_name, create_run_directory, refuse_taken
from gradtrace.runlog.reader import Run, load_run
from gradtrace.runlog.status import RunSummary, list_runs
from gradtrace.runlog.writer import RunLog

__all__ = [
    "Backlog",
    "Run",
    "RunLog",
    "RunSummary",
    "check_run_name",
    "create_run_directory",
    "list_runs",
    "load_run",
    "refuse_taken",
]
