"""Files that are replaced whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gradtrace.runlog.atomic import write_atomically


def test_text_and_bytes_take_the_place_of_what_was_there(tmp_path: Path) -> None:
    """New and old files end with the content, text as UTF-8; nothing else is left in the folder."""
    path = tmp_path / "a.json"
    write_atomically(path, "é\n" * 3)
    assert path.read_bytes() == "é\n".encode() * 3
    write_atomically(path, memoryview(b"short"), durable=True)
    assert path.read_bytes() == b"short"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_keeps_the_old_file(tmp_path: Path) -> None:
    """Who has the file open reads on in the old one: it is never written into."""
    path = tmp_path / "a"
    write_atomically(path, "old")
    with path.open() as file:
        write_atomically(path, "newer")
        assert file.read() == "old"
    assert path.read_text() == "newer"


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_what_the_disk_refuses_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Wherever it fails: OSError, the old content, and no temporary file."""
    path = tmp_path / "a"
    write_atomically(path, "old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new", durable=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_taken_in_parts_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may take less than it was given."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    write_atomically(tmp_path / "a", "0123456789")
    assert (tmp_path / "a").read_text() == "0123456789"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """Folders are made by who knows that they are wanted."""
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "a", "")
