"""The words for how a run ended."""

from __future__ import annotations

import sys

import pytest

from gradtrace.session.ending import status_at_exit, status_of


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "finished"),
        (SystemExit(), "finished"),
        (SystemExit(0), "finished"),
        (SystemExit(1), "ended by SystemExit"),
        (SystemExit("no data"), "ended by SystemExit"),
        (GeneratorExit(), "finished"),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt"),
        (KeyError("x"), "ended by KeyError"),
        (KeyError, "ended by KeyError"),
    ],
)
def test_exceptions_are_named(error: BaseException | None, expected: str) -> None:
    """By their class; those that are ways to finish are none."""
    assert status_of(error) == expected


def test_the_last_exception_ended_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python keeps it; where somebody types, it has ended nothing."""
    monkeypatch.delattr(sys, "ps1", raising=False)
    monkeypatch.delattr(sys, "last_value", raising=False)
    assert status_at_exit() == "finished"
    monkeypatch.setattr(sys, "last_value", KeyError("x"), raising=False)
    assert status_at_exit() == "ended by KeyError"
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert status_at_exit() == "finished"
