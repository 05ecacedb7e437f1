"""Notes: each text once, from any thread, everywhere they are looked for."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from gradtrace import Trace, gradtrace, load_run
from gradtrace.detect.nonpositive import ENOUGH
from gradtrace.records import RunNote, StepRecord
from gradtrace.session import notes as module
from gradtrace.session.notes import Notes
from gradtrace.testing import RecordingExporter


def new() -> Notes:
    return Notes(rank=2, step=lambda: 7, clock=lambda: 50.0)


def texts(notes: Notes) -> list[str]:
    return [note.message for note in notes.all()]


def test_a_note_is_an_event_of_its_moment() -> None:
    """It has the step, time and rank of when it was added, and its source."""
    notes = new()
    notes.add("loader", "no ids")
    [note] = notes.all()
    assert note == RunNote(
        step=7, time=50.0, severity="warning", message="no ids", rank=2, source="loader"
    )
    assert notes.take() == [note] and notes.take() == []
    assert notes.all() == [note]


def test_the_same_text_is_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    """Also from another source, and it is logged once."""
    notes = new()
    with caplog.at_level(logging.WARNING, "gradtrace"):
        for source in ("a", "a", "b"):
            notes.add(source, "%s is no format", warn=True)
        notes.add("a", "quiet")
    assert texts(notes) == ["%s is no format", "quiet"]
    assert [record.getMessage() for record in caplog.records] == ["%s is no format"]
    assert len(notes.take()) == 2


class Met(str):
    """A text at which two threads meet, first where it is looked for and then where it is kept."""

    __slots__ = ("barrier",)

    barrier: threading.Barrier

    def __hash__(self) -> int:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.barrier.wait(0.2)  # in vain when only one thread at a time gets here
        return super().__hash__()


def test_two_threads_that_meet_note_a_text_once() -> None:
    """No other thread comes between the look for a text and its note."""
    notes, barrier = new(), threading.Barrier(2)

    def add() -> None:
        text = Met("met")
        text.barrier = barrier
        notes.add("threads", text)

    other = threading.Thread(target=add)
    other.start()
    add()
    other.join(60)
    assert texts(notes) == ["met"] and len(notes.take()) == 1


def test_many_threads_note_a_text_once() -> None:
    """However many threads add the same texts at once, each is kept and sent once, in bounds."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            notes = new()
            start = threading.Barrier(8)

            def add(notes: Notes = notes, start: threading.Barrier = start) -> None:
                start.wait()
                for k in range(50):
                    notes.add("threads", f"text {k}")

            threads = [threading.Thread(target=add) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert sorted(texts(notes)) == sorted(f"text {k}" for k in range(50))
            assert len(notes.take()) == 50
    finally:
        sys.setswitchinterval(interval)


def test_notes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that finds something new all the time keeps the first of it, detectors' notes too."""
    monkeypatch.setattr(module, "MOST", 5)
    notes = new()
    for k in range(20):
        notes.add("a", f"{k}")
    assert texts(notes) == list("01234") and len(notes.take()) == 5
    notes.see([found(f"seen {k}") for k in range(9)])
    assert texts(notes) == list("01234")


def test_what_detectors_noted_is_not_sent_again() -> None:
    """`see` takes in notes that are on their way; steps and other events are none of its own."""
    notes = new()
    note = found("found")
    notes.see([StepRecord(3, 1.0), note, note])
    assert notes.all() == [note] and notes.take() == []
    notes.add("a", "found")
    assert notes.all() == [note] and notes.take() == []


def found(text: str) -> RunNote:
    """What a detector makes."""
    return RunNote(step=3, time=1.0, severity="warning", message=text, source="spikes")


def traced(directory: Path) -> tuple[Trace, RecordingExporter]:
    """A run with a note of a detector, one of the loop and one from the end."""
    exporter = RecordingExporter()
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=directory, exporters=[exporter]) as trace:
        trace._notes.add("loop", "of the loop")
        for _ in range(ENOUGH + 5):
            optimizer.zero_grad()
            (model(torch.zeros(1, 1)).sum() * 0).backward()
            optimizer.step()
        assert trace.flush(60)
        trace._notes.add("end", "of the end")
        trace._notes.add("loop", "of the loop")
    return trace, exporter


def test_all_places_have_all_notes_once(tmp_path: Path) -> None:
    """`trace.notes`, `trace.events`, the run directory and exporters say the same."""
    trace, exporter = traced(tmp_path)
    assert trace.path is not None
    assert sorted(note.source for note in trace.notes) == ["end", "loop", "spikes"]
    mine = sorted(trace.notes, key=lambda note: note.source)
    for events in (trace.events, exporter.events, load_run(trace.path).events):
        found = [event for event in events if isinstance(event, RunNote)]
        assert sorted(found, key=lambda note: note.source) == mine
