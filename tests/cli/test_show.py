"""`gradtrace show`."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run

from gradtrace.report.terminal import LAYERS


@pytest.mark.parametrize("absolute", [False, True])
def test_show_by_name_and_by_path(runs: Path, absolute: bool) -> None:
    """`gradtrace show` takes a name below gradtrace-runs as well as a path."""
    code, text = run("show", str(runs / "small") if absolute else "small")
    assert code == 0
    assert "finished, 3 steps" in text
    assert "gradient norm" in text and "weight" in text


def test_show_lists_as_many_layers_as_asked(runs: Path) -> None:
    """`--layers` bounds the list; left out it is as long as everywhere else."""
    assert "and 2 more" in run("show", "small", "--layers", "0")[1]
    assert f"default: {LAYERS}" in run("show", "--help")[1]
