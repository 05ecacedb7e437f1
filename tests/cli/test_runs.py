"""`gradtrace runs`."""

from __future__ import annotations

from pathlib import Path

from command_line import run


def test_runs_lists(runs: Path) -> None:
    """`gradtrace runs` lists name, steps and status of each run."""
    code, text = run("runs")
    assert code == 0
    assert "small" in text and "finished" in text and " 3 " in text


def test_runs_of_an_empty_directory(runs: Path) -> None:
    """`gradtrace runs` says so when a directory holds no runs."""
    (runs / "empty").mkdir()
    assert run("runs", str(runs / "empty")) == (0, f"no runs in {runs / 'empty'}")


def test_runs_lists_folders(runs: Path) -> None:
    """`gradtrace runs` gives the name that `gradtrace show` takes, and a damaged run as such."""
    (runs / "small").rename(runs / "renamed")
    assert "renamed" in run("runs")[1] and "small" not in run("runs")[1]
    assert run("show", "renamed")[0] == 0
    (runs / "renamed" / "run.json").write_text("{")
    assert "damaged" in run("runs")[1]
