"""How a run ended, in the words of its status."""

from __future__ import annotations

import sys

FINISHED = "finished"


def status_of(error: BaseException | type[BaseException] | None) -> str:
    """The status of a run that this exception ended, None for no exception.

    `sys.exit()` and `sys.exit(0)` are ways to finish, and so is a generator that is closed.
    """
    if error is None or isinstance(error, GeneratorExit):
        return FINISHED
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return FINISHED
    kind = error if isinstance(error, type) else type(error)
    return f"ended by {kind.__name__}"


def status_at_exit() -> str:
    """The status of a run that is still open when the interpreter ends.

    Python keeps the exception that has ended the process, but for SystemExit, of which nothing is
    known by then. An interpreter at a terminal, or a notebook's, goes on after exceptions and does
    not end by its last one.
    """
    if hasattr(sys, "ps1"):
        return FINISHED
    return status_of(getattr(sys, "last_value", None))
