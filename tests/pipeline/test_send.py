"""What a finished or killed run still owes is delivered later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from deliveries import SOON, Settling, ended, give, never, note, numbers, started, step

from gradtrace.pipeline.position import Cursor, Position
from gradtrace.pipeline.send import Delivered, deliver
from gradtrace.records import Record, RunInfo, StepRecord
from gradtrace.testing import FailingExporter, MemoryBacklog, RecordingExporter


def test_nothing_owed_opens_no_exporter_that_settles(tmp_path: Path) -> None:
    """It would begin something new for nothing; what is owed is stored when it was closed."""
    backlog = MemoryBacklog()
    backlog.append([step(0), note(0)])
    backlog.flush()
    info = RunInfo(name="r", started=0.0, path=tmp_path)
    first, second = Settling(), Settling()
    assert deliver(backlog, info, first).steps == 1 and first.closed
    assert deliver(backlog, info, second).steps == 0 and not second.opened


def test_sending_goes_on_where_the_run_stopped(tmp_path: Path) -> None:
    """A backend dead to the end gets the rest from `deliver`, and a second call sends nothing."""
    exporter, backlog = FailingExporter(name="e"), MemoryBacklog()
    worker = started(exporter, backlog=backlog, run=tmp_path, pauses=never)
    exporter.heal()
    give(worker, backlog, step(0), note(0))
    assert worker.flush(SOON)
    exporter._failures = None
    give(worker, backlog, *(step(n) for n in range(1, 600)), note(1))
    assert ended(worker) == "599 steps and 1 event"
    later = RecordingExporter("e")
    info = RunInfo(name="run", started=0.0, path=tmp_path)
    sent = deliver(backlog, info, later)
    assert (sent.steps, sent.events) == (599, 1) and later.opened and later.closed
    assert numbers(exporter) + numbers(later) == list(range(600))
    again = deliver(backlog, info, RecordingExporter("e"))
    assert (again.steps, again.events) == (0, 0)


def test_sending_that_fails_can_be_repeated(tmp_path: Path) -> None:
    """After a few tries the error is raised; a later call begins with the batch that failed."""
    backlog = MemoryBacklog()
    backlog.append([step(n) for n in range(10)])
    backlog.flush()
    pauses: list[float] = []
    exporter = FailingExporter(4, name="e")
    info = RunInfo(name="run", started=0.0, path=tmp_path)
    with pytest.raises(ConnectionError):
        deliver(backlog, info, exporter, pause=pauses.append)
    assert pauses == [0.5, 1.0, 2.0] and exporter.closed
    assert deliver(backlog, info, exporter, pause=pauses.append).steps == 10
    assert numbers(exporter) == list(range(10))


class OneFile(RecordingExporter):
    """Makes one thing of the whole run."""

    whole = True


def test_one_thing_of_the_whole_run_gets_all_of_it_each_time(tmp_path: Path) -> None:
    """No cursor is kept, so nothing is asked of a run directory that cannot be written to."""
    backlog = MemoryBacklog()
    backlog.append([step(0), note(0)])
    backlog.flush()
    (tmp_path / "cursors").write_text("a file is in the way")
    info = RunInfo(name="r", started=0.0, path=tmp_path)
    for _ in range(2):
        exporter = OneFile()
        assert deliver(backlog, info, exporter) == Delivered(1, 1)
        assert exporter.run == info and exporter.closed


class Counting(RecordingExporter):
    """Goes on from what was delivered before."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[Record] = []

    def remember(self, records: Sequence[Record]) -> None:
        assert not self.records
        self.known += records


def test_what_was_delivered_before_is_remembered(tmp_path: Path) -> None:
    """Exactly the records before the cursor are shown, before any is sent; none from the start."""
    backlog = MemoryBacklog()
    records: list[Record] = [r for n in range(300) for r in (step(n), note(n))]
    backlog.append(records)
    backlog.flush()
    info = RunInfo(name="r", started=0.0, path=tmp_path)
    Cursor(tmp_path, "recording").save(Position(280, 270))
    exporter = Counting()
    assert deliver(backlog, info, exporter) == Delivered(20, 30)
    before = [r for r in exporter.known if isinstance(r, StepRecord)]
    assert before == [step(n) for n in range(280)]
    assert [r for r in exporter.known if r not in before] == [note(n) for n in range(270)]
    again = Counting()
    assert deliver(backlog, info, again, again=True) == Delivered(300, 300)
    assert again.known == []


def test_nothing_is_read_again_for_one_that_remembers_nothing(tmp_path: Path) -> None:
    """What was delivered before is read only for an exporter that wants to see it."""

    class Asked(MemoryBacklog):
        first = 9

        def read_since(self, step: int, *rest: Any, **options: Any) -> Any:
            self.first = min(self.first, step)
            return super().read_since(step, *rest, **options)

    backlog = Asked()
    backlog.append([step(n) for n in range(5)])
    backlog.flush()
    Cursor(tmp_path, "recording").save(Position(4, 0))
    info = RunInfo(name="r", started=0.0, path=tmp_path)
    assert deliver(backlog, info, RecordingExporter()) == Delivered(1, 0)
    assert backlog.first == 4


def test_a_delivery_has_the_name_its_trace_gave_it(tmp_path: Path) -> None:
    """The second of a kind goes on from its own cursor."""
    backlog = MemoryBacklog()
    backlog.append([step(0), step(1)])
    backlog.flush()
    info = RunInfo(name="r", started=0.0, path=tmp_path)
    Cursor(tmp_path, "recording-2").save(Position(1, 0))
    assert deliver(backlog, info, RecordingExporter(), name="recording-2") == Delivered(1, 0)
    assert deliver(backlog, info, RecordingExporter()) == Delivered(2, 0)


def test_a_cursor_that_cannot_be_stored_is_told_before_anything_is_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, before the exporter is opened; everything is delivered all the same."""
    backlog = MemoryBacklog()
    backlog.append([step(n) for n in range(600)])
    backlog.flush()
    (tmp_path / "cursors").write_text("a file is in the way")
    known: list[int] = []

    class Asking(RecordingExporter):
        def open(self, run: RunInfo) -> None:
            known.append(len(caplog.messages))

    info = RunInfo(name="r", started=0.0, path=tmp_path)
    assert deliver(backlog, info, Asking()).steps == 600
    assert known == [1] and len(caplog.messages) == 1
    assert "cannot be stored" in caplog.text and "writable" in caplog.text


def test_from_the_beginning_keeps_what_was_stored(tmp_path: Path) -> None:
    """A delivery from the beginning that cannot begin leaves the cursor where it stood."""

    class Shut(RecordingExporter):
        def open(self, run: RunInfo) -> None:
            raise ConnectionError("no server")

    backlog = MemoryBacklog()
    Cursor(tmp_path, "recording").save(Position(3, 1))
    info = RunInfo(name="r", started=0.0, path=tmp_path)
    with pytest.raises(ConnectionError):
        deliver(backlog, info, Shut(), again=True)
    assert Cursor(tmp_path, "recording").load() == Position(3, 1)
