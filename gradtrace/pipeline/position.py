"""How far each exporter has got: a small file per exporter in the run directory."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = "cursors"


@dataclass(frozen=True, slots=True)
class Position:
    """The first step number not yet delivered, and how many events have been."""

    step: int = 0
    event: int = 0


def safe_name(name: str) -> str:
    """The name as part of a file name, at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100] or "_"


class Cursor:
    """The stored position of one exporter; with `run` None it is kept in memory only."""

    def __init__(self, run: Path | None, name: str) -> None:
        self._path = None if run is None else run / FOLDER / f"{safe_name(name)}.json"

    def load(self) -> Position:
        """The stored position; the beginning when there is none or the file is damaged."""
        if self._path is None:
            return Position()
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            return Position(max(0, int(data["step"])), max(0, int(data["event"])))
        except (OSError, ValueError, KeyError, TypeError):
            return Position()

    def save(self, position: Position) -> None:
        """Stores the position, atomically. Raises OSError when the disk refuses."""
        if self._path is None:
            return
        self._path.parent.mkdir(exist_ok=True)
        fresh = self._path.with_suffix(".tmp")
        fresh.write_text(json.dumps({"step": position.step, "event": position.event}))
        os.replace(fresh, self._path)
