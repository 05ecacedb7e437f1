"""Threads that end by an exception."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from patience import patience

from gradtrace.taps.patches import Registry
from gradtrace.taps.threads import thread_target


class Listening:
    def __init__(self) -> None:
        self.heard: list[tuple[type[BaseException], int]] = []

    def thread_ended(self, error: type[BaseException]) -> None:
        self.heard.append((error, threading.get_ident()))


def dying(error: BaseException) -> int:
    """The number of a thread that the exception ended."""

    def work() -> None:
        raise error

    thread = threading.Thread(target=work)
    thread.start()
    number = thread.ident
    thread.join(patience(60))
    assert number is not None
    return number


def test_what_ended_a_thread_is_told_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own handling comes first, with the same arguments, and is put back."""
    seen: list[Any] = []

    def own(args: Any) -> None:
        seen.append((args.exc_type, args.thread is threading.current_thread()))

    monkeypatch.setattr(threading, "excepthook", own)
    observer = Listening()
    detach = Registry().attach(thread_target(), observer)
    number = dying(ValueError("mine"))
    assert observer.heard == [(ValueError, number)] and seen == [(ValueError, True)]
    detach()
    assert threading.excepthook is own
    dying(ValueError("mine"))
    assert len(observer.heard) == 1 and len(seen) == 2


def test_a_thread_that_exits_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.exit()` in a thread is no exception, neither for Python nor here."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    observer = Listening()
    detach = Registry().attach(thread_target(), observer)
    dying(SystemExit(1))
    detach()
    assert observer.heard == []


def test_what_the_hook_raises_is_python_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook of the user's that fails does so as it would have; the end is told all the same."""

    def broken(args: Any) -> None:
        raise OSError("hook")

    monkeypatch.setattr(threading, "excepthook", broken)
    monkeypatch.setattr(sys, "excepthook", lambda *args: None)
    observer = Listening()
    detach = Registry().attach(thread_target(), observer)
    with pytest.raises(OSError, match="hook"):
        threading.excepthook(threading.ExceptHookArgs((ValueError, None, None, None)))
    detach()
    assert [error for error, _ in observer.heard] == [ValueError]
