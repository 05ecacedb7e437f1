"""When code that `torch.compile` made runs, and when it ends.

The compiler guards what it has traced by the global hooks on modules: a hook that comes and goes
would have it compile again. So whoever puts such a hook takes it away for the time that compiled
code runs, which every way into it announces by one function.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol

from gradtrace.taps.patches import Function, Observers, Target, attribute


class CompiledObserver(Protocol):
    """Told in whichever thread runs compiled code."""

    def compiled_begins(self) -> None:
        """What follows in this thread is for the compiler."""

    def compiled_ends(self) -> None:
        """What follows in this thread is plain Python."""


class _Outermost(threading.local):
    frame: int | None = None


_outermost = _Outermost()
"""By its id, the frame in which this thread entered compiled code; it lives until it leaves."""


def compiled_targets() -> Iterator[Target]:
    """Where the compiler is switched on and off for a thread, and the call of a compiled module.

    The latter warns its user of global hooks before it switches the compiler on. Raises
    AttributeError when this torch has them under other names. Imports the compiler's front end,
    which any optimizer has imported already.
    """
    import torch._dynamo.eval_frame as eval_frame

    yield attribute(eval_frame, "_maybe_set_eval_frame", _wrap)
    yield attribute(eval_frame.OptimizedModule, "__call__", _wrap_call)


def _wrap(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def _maybe_set_eval_frame(callback: Any) -> Any:
        entered = _outermost.frame
        if entered is None:
            if callback is not None:
                _enter(sys._getframe(1), observers())
        elif entered == id(sys._getframe(1)):
            _leave(observers())
        return original(callback)

    return _maybe_set_eval_frame


def _wrap_call(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        watching = observers()
        if not watching or _outermost.frame is not None:
            return original(self, *args, **kwargs)
        _enter(sys._getframe(), watching)
        try:
            return original(self, *args, **kwargs)
        finally:
            _leave(observers())

    return __call__


def _enter(caller: FrameType, watching: tuple[Any, ...]) -> None:
    """The function that switches the compiler on here switches it off in its own end.

    What runs in between, such as the compiler itself, switches it off and on as well.
    """
    if watching and caller.f_code.co_name not in ("__enter__", "__exit__"):
        _outermost.frame = id(caller)
        for observer in watching:
            observer.compiled_begins()


def _leave(watching: tuple[Any, ...]) -> None:
    _outermost.frame = None
    for observer in watching:
        observer.compiled_ends()
