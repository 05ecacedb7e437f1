"""The demo's text."""

from __future__ import annotations

from gradtrace.demo.text import TextWindows, help_text


def test_windows_shift_by_one() -> None:
    """A window's targets are its inputs one character on, and windows follow each other."""
    data = TextWindows("hello brave new world", length=5)
    assert len(data) == 4
    inputs, targets = data[1]
    assert data.decode(inputs) == " brav"
    assert data.decode(targets) == "brave"


def test_text_is_long_enough() -> None:
    """Python's help texts give a few hundred thousand characters."""
    assert len(help_text()) > 200_000
