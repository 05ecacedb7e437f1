"""Where a run is kept."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from gradtrace.runlog.directory import check_run_name, create_run_directory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create_run_directory(tmp_path / "runs", "run")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "/", "/tmp/x", "a/b", "../x", "a\\b", "a\0b", "x" * 201, "é" * 101],
)
def test_names_that_could_escape_are_refused(tmp_path: Path, name: str) -> None:
    """A run name is one plain folder name of at most 200 bytes; refusing makes no folder."""
    with pytest.raises(ValueError, match=r"got .*; expected .*: choose a plain folder name"):
        create_run_directory(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_refused(path: Path) -> None:
    """A run is never overwritten."""
    with pytest.raises(ValueError, match=r"exists already.*choose another name"):
        create_run_directory(path.parent, "run")


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_the_way_is_a_wrong_argument(tmp_path: Path, below: str) -> None:
    """A directory that is a file, or lies below one, raises ValueError."""
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a file is in the way"):
        create_run_directory(tmp_path / "file" / below, "run")


def test_an_unwritable_place_raises_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system says about a place that cannot be written reaches the caller."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError):
        create_run_directory(tmp_path, "run")


def test_a_new_name_has_a_new_folder(tmp_path: Path) -> None:
    """Missing folders above it are made, and the name is given back as it was."""
    path = create_run_directory(tmp_path / "deep" / "runs", check_run_name("baseline é-1"))
    assert path == tmp_path / "deep" / "runs" / "baseline é-1"
    assert path.is_dir()


@pytest.mark.parametrize("name", [None, 3, b"run"])
def test_a_name_is_text(name: object) -> None:
    """Anything else is told with what to give."""
    with pytest.raises(TypeError, match="expected a string: choose a plain folder name"):
        check_run_name(name)
