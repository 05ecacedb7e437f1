"""`gradtrace demo`."""

from __future__ import annotations

from pathlib import Path

from command_line import run


def test_demo_command(runs: Path) -> None:
    """`gradtrace demo` trains, and shows a sample and the summary of the run."""
    code, text = run("demo", "--steps", "2", "--directory", str(runs))
    assert code == 0
    assert "What the model writes now" in text and "2 steps" in text
