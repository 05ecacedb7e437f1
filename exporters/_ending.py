"""How a run ended, for backends that keep a state of it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path


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
    return "killed" if _is_gone(info.get("pid"), info.get("hostname")) else "closed"


def _is_gone(pid: object, host: object) -> bool:
    """Whether a process of this machine has ended."""
    if not isinstance(pid, int) or pid <= 0 or host != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False
