"""Where a run is kept: its directory and its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ADVICE = "choose a plain folder name such as 'baseline-1'"


def check_run_name(name: Any) -> str:
    """`name` if it is one folder's name. Raises TypeError or ValueError otherwise."""
    if not isinstance(name, str):
        raise TypeError(f"got run name {name!r}; expected a string: {_ADVICE}")
    if not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(
            f"got run name {name!r}; expected a name that is not empty, does not begin with a dot "
            f"and holds no slash, backslash or NUL: {_ADVICE}"
        )
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise ValueError(
            f"got run name {name!r}, which holds half a character (a lone surrogate) that no file "
            f"can be named with: {_ADVICE}"
        )
    size = len(name.encode())
    if size > 200:
        raise ValueError(f"got a run name of {size} bytes; expected at most 200: {_ADVICE}")
    return name


def refuse_taken(directory: Path, name: str) -> None:
    """Raises ValueError when there is a run of that name."""
    if (directory / name).exists():
        raise ValueError(
            f"got run name {name!r}, which exists already in {str(directory)!r}; expected a new "
            "one, since runs are never overwritten: choose another name, or give none to have one "
            "made; where processes of one training share a name, set up torch.distributed first, "
            "so that each knows its rank"
        )


def create_run_directory(directory: Path, name: str) -> Path:
    """Makes the new directory `directory`/`name` and returns it.

    Raises TypeError or ValueError for a name that is no plain folder name or is taken, and for a
    `directory` that is a file; OSError when the place cannot be written.
    """
    check_run_name(name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"got directory {str(directory)!r}, where a file is in the way; expected a folder or "
            "a place to make one: choose another directory"
        ) from error
    path = directory / name
    try:
        path.mkdir()
    except FileExistsError:
        refuse_taken(directory, name)
        raise
    return path
