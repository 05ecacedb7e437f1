"""The wall between gradtrace and the user's loop."""

from __future__ import annotations

import contextlib
import itertools
import logging
from typing import Any

import pytest

from gradtrace import guard as guard_module
from gradtrace.guard import Guard


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def guard(told: list[tuple[str, str]]) -> Guard:
    return Guard(lambda source, text: told.append((source, text)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes a second."""
    ticks = itertools.count()
    monkeypatch.setattr(guard_module, "perf_counter", lambda: float(next(ticks)))


def fail(error: BaseException) -> Any:
    raise error


def test_a_guarded_function_is_as_before(guard: Guard) -> None:
    """Arguments, value, name and docstring are the function's own."""

    def add(a: int, *, b: int = 1) -> int:
        """Adds."""
        return a + b

    guarded = guard.wrap("adding", add)
    assert guarded(2, b=3) == 5 and guarded(2) == 3
    assert guarded.__name__ == "add" and guarded.__doc__ == "Adds."
    assert guard.errors == {}


@pytest.mark.swallows
def test_an_error_stops_at_the_guard(
    guard: Guard, told: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """The call returns None; the error is logged with its traceback, and told."""
    assert guard.wrap("the tap", fail)(ValueError("oops")) is None
    assert guard.errors == {("the tap", "ValueError"): 1}
    assert told == [("the tap", "the tap failed and is left out: ValueError: oops")]
    [record] = caplog.records
    assert record.levelno == logging.WARNING and record.getMessage() == told[0][1]
    assert record.exc_info is not None and "in fail" in caplog.text


@pytest.mark.swallows
def test_the_same_error_is_told_once(
    guard: Guard, told: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each place and type, however often it comes; all are counted."""
    for error in (ValueError("a"), ValueError("b"), TypeError("c")):
        guard.wrap("here", fail)(error)
    guard.wrap("there", fail)(ValueError("d"))
    assert guard.errors == {
        ("here", "ValueError"): 2,
        ("here", "TypeError"): 1,
        ("there", "ValueError"): 1,
    }
    assert [text.rpartition(": ")[2] for _, text in told] == ["a", "c", "d"]
    assert len(caplog.records) == 3


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_interrupts_are_the_users(guard: Guard, interrupt: BaseException) -> None:
    """Ctrl-C and exits go through, and the guard works on."""
    with pytest.raises(type(interrupt)):
        guard.wrap("here", fail)(interrupt)
    assert guard.errors == {}
    assert guard.wrap("here", lambda: 1)() == 1


@pytest.mark.usefixtures("clock")
def test_time_is_counted(guard: Guard) -> None:
    """What guarded calls take adds up."""
    guarded = guard.wrap("here", lambda: None)
    guarded()
    guarded()
    assert guard.seconds == 2.0


@pytest.mark.usefixtures("clock")
def test_nested_calls_are_counted_once(guard: Guard) -> None:
    """A guarded call within a guarded call does not look at the clock again."""
    inner = guard.wrap("inner", lambda: 1)
    outer = guard.wrap("outer", lambda: (inner() or 0) + (inner() or 0))
    assert outer() == 2
    assert guard.seconds == 1.0


@pytest.mark.swallows
@pytest.mark.usefixtures("clock")
def test_an_error_inside_stops_at_the_inner_guard(guard: Guard) -> None:
    """The outer call goes on; time and errors are right afterwards."""
    inner = guard.wrap("inner", fail)
    outer = guard.wrap("outer", lambda: (inner(ValueError("x")), "went on")[1])
    assert outer() == "went on"
    assert guard.errors == {("inner", "ValueError"): 1}
    assert guard.seconds == 1.0


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "error", [pytest.param(ValueError(), marks=pytest.mark.swallows), KeyboardInterrupt()]
)
def test_a_failed_call_is_over(guard: Guard, error: BaseException) -> None:
    """Its time counts, and the next call's time does too."""
    with contextlib.suppress(KeyboardInterrupt):
        guard.wrap("here", fail)(error)
    guard.wrap("here", lambda: None)()
    assert guard.seconds == 2.0


def test_two_guards_know_nothing_of_each_other(guard: Guard) -> None:
    """Each trace counts its own time, also where one's call runs within the other's."""
    other = Guard(lambda source, text: None)
    guard.wrap("outer", other.wrap("inner", lambda: None))()
    assert 0 < other.seconds < guard.seconds
