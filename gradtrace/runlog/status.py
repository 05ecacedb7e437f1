"""What is known of a run without reading it: its info, its state, a line in a list."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtrace.runlog.schema import STEPS
from gradtrace.runlog.segments import SegmentReader, segments

INFO_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A line of a list of runs. `name` is its folder's, `steps` the last recorded step plus one.

    Of a run whose `run.json` is damaged the status is "damaged", and `started` is when the folder
    was last changed.
    """

    name: str
    path: Path
    started: float
    status: str
    steps: int


def list_runs(directory: str | Path) -> list[RunSummary]:
    """The runs in `directory`, oldest first; empty when there is no such directory.

    Reads `run.json` and the newest step segment of each. A folder is a damaged run when its
    `run.json` cannot be read, or is none of ours beside segments of steps.
    """
    try:
        paths = [entry for entry in Path(directory).iterdir() if entry.is_dir()]
    except OSError:
        return []
    found = []
    for path in paths:
        info = read_info(path)
        started = info.get("started")
        if isinstance(started, int | float) and math.isfinite(started):
            found.append(RunSummary(path.name, path, started, status_of(info), _count(path)))
        elif info or _damaged(path):
            with contextlib.suppress(OSError):  # gone meanwhile
                changed = path.stat().st_mtime
                found.append(RunSummary(path.name, path, changed, "damaged", _count(path)))
    return sorted(found, key=lambda summary: (summary.started, summary.name))


def _damaged(path: Path) -> bool:
    """Whether a folder without sound information is a run all the same."""
    if segments(path, STEPS):
        return True
    try:
        json.loads((path / INFO_FILE).read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return False  # somebody else's


def _count(path: Path) -> int:
    for _, segment in reversed(segments(path, STEPS)):
        batch = SegmentReader(segment, STEPS).poll()
        if batch is not None:
            return int(batch.column("step")[-1].as_py()) + 1
    return 0


def read_info(path: Path) -> dict[str, Any]:
    """`run.json`, empty when it is missing or not ours."""
    try:
        info = json.loads((path / INFO_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) and "format" in info else {}


def status_of(info: dict[str, Any]) -> str:
    """The run's status; "killed" when it says "running" and its process is gone from this host."""
    status = str(info.get("status", "unknown"))
    gone = status == "running" and process_is_gone(info.get("pid"), info.get("hostname"))
    return "killed" if gone else status


def process_is_gone(pid: object, host: object) -> bool:
    """Whether a process of this machine has ended; False where nothing can be said of it."""
    # Elsewhere than on POSIX, signal 0 is not a question.
    if not isinstance(pid, int) or pid <= 0 or host != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False
