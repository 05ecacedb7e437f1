"""The fakes for tests do what they say."""

from __future__ import annotations

import threading

import pytest
from build import note, run_info, step
from patience import patience

from gradtrace.exporter import Exporter
from gradtrace.records import Record
from gradtrace.testing import FailingExporter, HangingExporter, MemoryBacklog, RecordingExporter


@pytest.mark.parametrize("kind", [RecordingExporter, FailingExporter, HangingExporter])
def test_the_fakes_are_exporters(kind: type[Exporter]) -> None:
    """Each fake is what the protocol asks for."""
    assert isinstance(kind(), Exporter)


def test_a_recording_exporter_remembers_all() -> None:
    """Records by kind, the run, and whether it was opened and closed."""
    exporter = RecordingExporter()
    assert not exporter.opened and not exporter.closed
    exporter.open(run_info())
    exporter.export([step(0), note(0)])
    exporter.close()
    assert exporter.opened and exporter.closed
    assert exporter.steps == [step(0)] and exporter.events == [note(0)]
    assert exporter.wait_for(2, 0) and exporter.wait_for_steps(1, 0)
    assert not exporter.wait_for(3, 0) and not exporter.wait_for_steps(2, 0)


def test_a_failing_exporter_fails_as_often_as_told() -> None:
    """It raises for the first `failures` exports, or until it is healed, and keeps the rest."""
    twice = FailingExporter(2)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            twice.export([step(0)])
    twice.export([step(0)])
    assert twice.steps == [step(0)] and twice.attempts == 3
    ever = FailingExporter()
    with pytest.raises(ConnectionError):
        ever.export([step(0)])
    ever.heal()
    ever.export([step(1)])
    assert ever.steps == [step(1)]


def test_a_hanging_exporter_hangs_until_released() -> None:
    """It says when it hangs, and keeps the records once let go."""
    exporter = HangingExporter()
    thread = threading.Thread(target=exporter.export, args=([step(0)],), daemon=True)
    thread.start()
    assert exporter.reached.wait(patience(30))
    assert exporter.records == []
    exporter.release()
    assert exporter.wait_for(1, patience(30))
    thread.join(patience(30))


def test_a_memory_backlog_shows_what_was_flushed() -> None:
    """Nothing is shown before a flush; positions go on where the last part ended."""
    backlog = MemoryBacklog()
    records: list[Record] = [step(0), note(0), note(0), step(1), step(2)]
    backlog.append(records)
    assert backlog.read_since(0, 0, 9) == ([], 0, 0)
    backlog.flush()
    backlog.append([step(3)])
    assert backlog.read_since(0, 0, 3) == (records[:3], 1, 2)
    assert backlog.read_since(1, 2, 9) == (records[3:], 3, 2)
    backlog.lose(1)
    assert backlog.read_since(1, 1, 9) == ([note(0), step(2)], 3, 2)
