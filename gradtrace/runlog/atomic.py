"""Files that are replaced whole: a reader sees the old content or the new one, no half."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_atomically(
    path: Path, content: str | bytes | memoryview, *, durable: bool = False
) -> None:
    """Puts `content`, text as UTF-8, where `path` is, in one go; its folder must exist.

    `durable` waits until the content is on the disk before the old one goes. Raises OSError; what
    stood there is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_fully(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def write_fully(fd: int, data: bytes | memoryview) -> None:
    """Writes all of `data`. Raises OSError with part of it written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
