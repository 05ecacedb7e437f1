"""What the trace says to an exporter, and how it is made again to deliver later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from torch import nn

from gradtrace import gradtrace
from gradtrace.exporter import introduce, send_command
from gradtrace.testing import FailingExporter, RecordingExporter


class Chosen(RecordingExporter):
    known_as = ""

    def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
        return {"SOME_URL": "http://a b", "KIND": "x"}, ["a folder", "-v"]


def test_the_command_has_the_exporters_settings() -> None:
    """Environment before it and arguments behind it, quoted for a shell; or neither."""
    assert send_command(Chosen(), "runs/my run", "chosen-2") == (
        "SOME_URL='http://a b' KIND=x gradtrace send 'runs/my run' --to chosen-2 'a folder' -v"
    )
    assert send_command(RecordingExporter(), "r", "recording") == "gradtrace send r --to recording"


def test_it_learns_its_name_if_it_wants_to() -> None:
    """`known_as` is set where there is one, and nothing is put on other objects."""
    chosen, plain = Chosen(), RecordingExporter()
    introduce(chosen, "recording-2")
    introduce(plain, "recording-3")
    assert chosen.known_as == "recording-2" and not hasattr(plain, "known_as")


def test_names_are_told_before_it_is_opened() -> None:
    """The second of a kind in a trace knows its number."""
    first, second = Chosen(), Chosen()
    with gradtrace(nn.Linear(2, 2), exporters=[first, second], directory=None):
        assert (first.known_as, second.known_as) == ("recording", "recording-2")


def test_one_object_serves_one_trace_at_a_time(tmp_path: Path) -> None:
    """A second trace refuses it at once and leaves the first alone; after its end it is welcome."""
    model, exporter = nn.Linear(2, 2), RecordingExporter()
    with gradtrace(model, exporters=[exporter], directory=None) as trace:
        inner = gradtrace(model, exporters=[exporter], directory=None)
        with pytest.raises(ValueError, match=r"'recording' is in use by another trace.*another"):
            inner.start()
        assert not exporter.closed
        trace.log(a=1)
    assert exporter.closed
    with gradtrace(model, exporters=[exporter], directory=tmp_path):
        pass


def test_one_that_was_left_behind_may_be_used_again() -> None:
    """An exporter that hung at the end of its trace keeps no later one from starting."""
    model, exporter = nn.Linear(2, 2), FailingExporter()
    for _ in range(2):
        with gradtrace(model, exporters=[exporter], directory=None, close_timeout=0.1) as trace:
            trace.log(a=1)
