"""Calls of which each may fail, until a time."""

from __future__ import annotations

import math
import time

from gradtrace.exporters.mlflow.attempts import Attempts


def fail() -> None:
    raise KeyError("no")


def test_what_fails_is_missing_and_holds_up_nothing() -> None:
    """Every call is made; those that raise are named, and the first error is kept."""
    attempts, made = Attempts(math.inf), []
    for name in ("one", "two", "three"):
        attempts.attempt(name, fail if name != "two" else lambda: made.append("two"))
    assert made == ["two"] and attempts.missing == ["one", "three"]
    assert isinstance(attempts.error, KeyError)


def test_when_time_is_over_only_the_needful_is_done() -> None:
    """Calls after the time are missing, but for those that are always made."""
    attempts, made = Attempts(time.monotonic() - 1.0), []
    attempts.attempt("late", lambda: made.append("late"))
    attempts.attempt("end", lambda: made.append("end"), always=True)
    assert made == ["end"] and attempts.missing == ["late"]
    assert isinstance(attempts.error, TimeoutError)


def test_whether_a_call_worked_is_told() -> None:
    """A call that raised or was not made has not."""
    attempts = Attempts(math.inf)
    assert attempts.works(lambda: None) and not attempts.works(fail)
    assert attempts.missing == []
