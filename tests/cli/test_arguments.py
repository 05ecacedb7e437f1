"""How commands find a run, and how they end when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from gradtrace.cli.arguments import failed, load


@pytest.mark.parametrize("name", ["small", "gradtrace-runs/small"])
def test_a_run_is_found_by_name_and_by_path(runs: Path, name: str) -> None:
    """A name below gradtrace-runs is enough, and so is a path."""
    assert load(name).path.resolve() == (runs / "small").resolve()


def test_a_path_comes_before_a_name(runs: Path) -> None:
    """A folder of that name here is taken, not the run below gradtrace-runs."""
    (runs.parent / "small").mkdir()
    with pytest.raises(typer.BadParameter, match="no run directory"):
        load("small")


def test_what_is_no_run_is_wrong_usage(runs: Path) -> None:
    """A name that is nothing says where it was looked for, and which command lists runs."""
    with pytest.raises(typer.BadParameter, match=r"no run 'large'.*`gradtrace runs` lists them"):
        load("large")


def test_a_failure_is_told_on_the_error_output(capsys: pytest.CaptureFixture[str]) -> None:
    """The command exits with 1, and its output proper stays clean."""
    assert failed("the disk is full").exit_code == 1
    assert capsys.readouterr() == ("", "gradtrace: the disk is full\n")
