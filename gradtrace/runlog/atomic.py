"""Small files that are replaced whole: a reader sees the old text or the new one, no half."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Puts `text` where `path` is, in one go; the folder exists. Raises OSError.

    What is there stays as it was when the disk refuses.
    """
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
