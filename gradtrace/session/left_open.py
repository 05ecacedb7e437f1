"""Traces that were begun without `with` and left open: a notebook's cell that is run again.

Nobody can end a trace that nobody holds any more. When another trace of the same parameters begins,
or has its first backward, such a one is ended, with a note in both runs. Two traces side by side
are a plain use: whatever may be meant is kept, and noted where it may also have been forgotten.
"""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from gradtrace.session.ending import FINISHED
from gradtrace.session.wiring import Wiring

Place = tuple[str, int, int]


@dataclass(eq=False, slots=True)
class Open:
    """A running trace: the object that the user holds, weakly, and what runs behind it."""

    trace: weakref.ref[Any]
    wiring: Wiring
    entered: bool
    """By a `with`, which ends it by itself."""
    place: Place | None
    """The statement of a notebook's cell that began it, and which execution that was."""
    pid: int


_open: list[Open] = []
"""Per process by nature: it is about traces that know nothing of each other."""


def begin(one: Open) -> None:
    """The trace runs from now on."""
    _open.append(one)


def end(wiring: Wiring) -> None:
    """It does not any more."""
    _open[:] = [one for one in _open if one.wiring is not wiring]


def place(frame: FrameType | None) -> Place | None:
    """Where a notebook's cell begins a trace, on its own level; None anywhere else."""
    shell = _shell()
    if shell is None or frame is None or frame.f_code.co_name != "<module>":
        return None
    return frame.f_code.co_filename, frame.f_lineno, int(getattr(shell, "execution_count", 0))


def of_same(wiring: Wiring) -> list[Open]:
    """The running traces of any of the same parameters, older ones first."""
    mine = {id(p) for p in wiring.parameters.tensors}
    return [
        one
        for one in list(_open)
        if one.pid == os.getpid()
        and one.wiring is not wiring
        and not mine.isdisjoint(id(p) for p in one.wiring.parameters.tensors)
    ]


def end_older(wiring: Wiring, now: Place | None, ends: Callable[[Wiring, str], None]) -> list[Open]:
    """Ends traces of the same parameters that nobody can end, before a new one begins.

    Then their exporters' ports and names are free. Those that go on are returned.
    """
    kept = []
    for one in of_same(wiring):
        if one.wiring.is_trained_here and (one.trace() is None or run_again(one, now)):
            told(one, wiring)
            ends(one.wiring, FINISHED)
        else:
            kept.append(one)
    return kept


def run_again(one: Open, now: Place | None) -> bool:
    """Whether the statement that began this trace is under way again, in a later execution."""
    return (
        one.place is not None
        and now is not None
        and one.place[:2] == now[:2]
        and one.place[2] < now[2]
    )


def unreachable(one: Open) -> bool:
    """Whether no code will end this trace: its object is gone, or only what is over holds it.

    What is over is a frame that an exception has ended, which the last traceback keeps, and a
    notebook's list of results. Looks at all objects there are, 0.1 s, unless the object is gone.
    """
    trace = one.trace()
    if trace is None:
        return True
    if one.entered or _is_named(trace):  # no closure here: its cell would hold the trace, too
        return False
    running, here = _running_frames(), sys._getframe()
    over = [here, _main(), _main().get("Out")]
    return all(
        any(holder is known for known in over)
        or (isinstance(holder, FrameType) and holder not in running)
        for holder in gc.get_referrers(trace)
    )


def decide(wiring: Wiring, older: Sequence[Open], ends: Callable[[Wiring], None]) -> None:
    """Looks once more at older traces of the same parameters, at this one's first backward.

    By then a name that held the old trace may hold the new one. Training thread; `ends` is called
    with what runs behind each that nobody can end.
    """
    for one in older:
        if one.wiring.ending:
            continue
        if one.wiring.is_trained_here and unreachable(one):
            told(one, wiring)
            ends(one.wiring)
        elif not one.entered:
            wiring.notes.add(
                "trace",
                f"the run {one.wiring.settings.name!r} traces this model too, and both are "
                "recorded; where that one was left open, by a cell that was run before, end it "
                "with its trace.close(); `with gradtrace(...)` ends by itself",
            )


def told(one: Open, by: Wiring) -> None:
    """Both runs say that the older one was ended."""
    old, new = one.wiring.settings.name, by.settings.name
    one.wiring.notes.add(
        "trace",
        f"this run was left open and ended when the run {new!r} began to trace the same model: "
        "call trace.close() at the end, or use `with gradtrace(...)`, which ends by itself",
    )
    by.notes.add(
        "trace",
        f"the run {old!r} of the same model was left open, so it was ended: call trace.close() at "
        "the end, or use `with gradtrace(...)`, which ends by itself",
    )


def _is_named(trace: Any) -> bool:
    """Whether a name of the script's, or of the notebook's, holds the trace."""
    return any(value is trace for name, value in list(_main().items()) if name[:1] != "_")


def _shell() -> Any:
    """IPython's, which runs cells; None elsewhere."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _main() -> dict[str, Any]:
    """The names of a script, or of a notebook's cells."""
    shell = _shell()
    namespace = getattr(shell, "user_ns", None)
    if isinstance(namespace, dict):
        return namespace
    main = sys.modules.get("__main__")
    return {} if main is None else vars(main)


def _running_frames() -> set[FrameType]:
    found: set[FrameType] = set()
    for frame in sys._current_frames().values():
        at: FrameType | None = frame
        while at is not None:
            found.add(at)
            at = at.f_back
    return found
