"""Which MLflow run a run went into: kept beside its records, for a process that sends the rest."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class KnownRun:
    """An MLflow run: its id, whether it is our own, and on which server; None for no address."""

    run_id: str
    own: bool
    tracking_uri: str | None

    def save(self, run: Path | None, name: str) -> None:
        """Stores it, without an address that holds a password. Raises nothing."""
        if run is None:
            return
        data = asdict(self)
        if "@" in urlsplit(self.tracking_uri or "").netloc:
            data["tracking_uri"] = None
        path = run / _file(name)
        with contextlib.suppress(OSError):  # without the file our own run is found by its tag
            fresh = path.with_suffix(".tmp")
            fresh.write_text(json.dumps(data), encoding="utf-8")
            os.replace(fresh, path)


def load_known_run(run: Path | None, name: str) -> KnownRun | None:
    """What the run directory tells of the MLflow run; None if nothing that makes sense."""
    if run is None:
        return None
    try:
        data: Any = json.loads((run / _file(name)).read_bytes())
        run_id, own, uri = data["run_id"], data["own"], data["tracking_uri"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    right = isinstance(run_id, str) and run_id.isalnum() and isinstance(own, bool)
    return KnownRun(run_id, own, uri) if right else None


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:100] + ".json"
