"""How far an exporter has got, and what is stored of that when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from deliveries import note, step

from gradtrace.pipeline.position import STORE_EVERY, Cursor, Position, Progress


def test_a_cursor_file_is_replaced_whole(tmp_path: Path) -> None:
    """Only the finished file remains, under a name that any file system takes."""
    Cursor(tmp_path, "../a b/\N{SNOWMAN}" + "x" * 300).save(Position(3, 4))
    [file] = (tmp_path / "cursors").iterdir()
    assert json.loads(file.read_text()) == {"step": 3, "event": 4}
    assert len(file.name) <= 105 and not file.name.startswith(".")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"step": 1}', '{"step": "x", "event": 0}']
)
def test_a_damaged_cursor_is_the_beginning(tmp_path: Path, text: str) -> None:
    """Doubt means sending again, not missing."""
    (tmp_path / "cursors").mkdir()
    (tmp_path / "cursors" / "e.json").write_text(text)
    assert Cursor(tmp_path, "e").load() == Position()


def test_a_position_moves_with_records() -> None:
    """Behind a step lies the next number, also where some are missing; events are counted."""
    assert Position(3, 1).after([step(3), note(0), step(7), note(1)]) == Position(8, 3)
    assert Position(3, 1).after([]) == Position(3, 1)
    assert Position(3, 1).reached(Position(3, 1)) and Position(4, 2).reached(Position(3, 1))
    assert not Position(4, 0).reached(Position(3, 1))
    assert not Position(2, 9).reached(Position(3, 1))


def test_a_cursor_without_a_run_directory_stores_nothing() -> None:
    """It is always at the beginning."""
    cursor = Cursor(None, "e")
    cursor.save(Position(3, 4))
    assert cursor.load() == Position()


class Saves(Cursor):
    """Knows what was stored; the disk refuses where it is told to."""

    def __init__(self) -> None:
        super().__init__(None, "e")
        self.saved: list[Position] = []
        self.full = False

    def save(self, position: Position) -> None:
        if self.full:
            raise OSError("no space left")
        self.saved.append(position)


def test_progress_is_stored_now_and_then() -> None:
    """At most once within the throttle, and at once on demand; the same position only once."""
    now, cursor = [0.0], Saves()
    progress = Progress(cursor, 0.0, lambda: now[0])
    assert progress.pause is None
    for number in range(1, 4):
        progress.advance(Position(number, 0))
        progress.store()
    assert cursor.saved == [] and progress.pause == STORE_EVERY
    now[0] += STORE_EVERY
    progress.store()
    progress.store(at_once=True)
    assert cursor.saved == [Position(3, 0)] and progress.pause is None
    progress.advance(Position(4, 0))
    progress.store(at_once=True)
    assert cursor.saved == [Position(3, 0), Position(4, 0)]


def test_progress_stores_only_what_has_settled() -> None:
    """What was delivered less than `settling` seconds ago is not stored, until all is safe."""
    now, cursor = [0.0], Saves()
    progress = Progress(cursor, 2.0, lambda: now[0])
    for number in range(1, 5):
        now[0] = float(number)
        progress.advance(Position(number, 0))
        progress.store(at_once=True)
    assert cursor.saved == [Position(1, 0), Position(2, 0)]
    assert progress.pause == pytest.approx(0.5)
    progress.settle()
    progress.store(at_once=True)
    assert cursor.saved[-1] == Position(4, 0)


def test_a_full_disk_stops_no_delivery() -> None:
    """A cursor that cannot be stored is passed over, and stored again later."""
    cursor = Saves()
    progress = Progress(cursor, 0.0, lambda: 0.0)
    cursor.full = True
    progress.advance(Position(1, 0))
    progress.store(at_once=True)
    cursor.full = False
    progress.advance(Position(2, 0))
    progress.store(at_once=True)
    assert cursor.saved == [Position(2, 0)]
