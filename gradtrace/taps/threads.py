"""Threads that end by an exception."""

from __future__ import annotations

import functools
import threading
from typing import Any, Protocol

from gradtrace.taps.patches import Function, Observers, Target, attribute


class ThreadObserver(Protocol):
    """Told of exceptions that end a thread."""

    def thread_ended(self, error: type[BaseException]) -> None:
        """Called in the thread that ends, after what the process does about it."""


def thread_target() -> Target:
    """What Python calls when an exception ends a thread; not for SystemExit.

    Raises AttributeError when there is no such function.
    """
    return attribute(threading, "excepthook", _wrap)


def _wrap(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def excepthook(args: Any, /) -> Any:
        try:
            return original(args)
        finally:
            if args.exc_type is not SystemExit:
                for observer in observers():
                    observer.thread_ended(args.exc_type)

    return excepthook
