"""Runs that no backend knows yet."""

from __future__ import annotations

import time
from typing import Any

from build import run_info

from gradtrace.records import RunInfo


def fresh_run(name: str = "run", **fields: Any) -> RunInfo:
    """A run that has just begun."""
    return run_info(name, started=time.time(), **fields)
