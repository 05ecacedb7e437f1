"""How a run ended, for backends that keep a state of it."""

from __future__ import annotations

import json
from pathlib import Path

from gradtrace.runlog.status import process_is_gone


def how_it_ended(run: Path | None) -> str:
    """What the run directory says: "finished", "ended by KeyError", "killed", ...

    "closed" while the trace closes, or where nothing is known.
    """
    try:
        info = json.loads(((run or Path()) / "run.json").read_bytes())
        status = str(info["status"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "closed"
    if status != "running":
        return status[:500]
    return "killed" if process_is_gone(info.get("pid"), info.get("hostname")) else "closed"


def has_failed(status: str) -> bool:
    """Whether an exception ended the run, or the loop has said that it failed."""
    return status.startswith("ended by ") or status == "failed"
