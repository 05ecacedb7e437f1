from __future__ import annotations

import io
import math
import sys
from typing import Any, Literal

import pytest
from fresh_python import run_python

import gradtrace.exporters
from gradtrace.exporters import ConsoleExporter
from gradtrace.records import Clip, RunInfo, RunNote, StepRecord

RUN = RunInfo(name="run", started=0.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A stream that stops taking anything."""

    def __init__(self, *, terminal: bool, writes: int) -> None:
        super().__init__()
        self.terminal = terminal
        self.writes = writes

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.writes -= 1
        if self.writes < 0:
            raise BrokenPipeError("nobody reads")
        return super().write(text)


class Ascii(io.StringIO):
    encoding = "ascii"

    def write(self, text: str) -> int:
        text.encode("ascii")
        return super().write(text)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def step(number: int, *, overhead: float = 0.01, seconds: float | None = 1.0) -> StepRecord:
    return StepRecord(
        step=number,
        time=0.0,
        seconds=seconds,
        loss=1.5,
        grad_norm=2.0,
        clip=Clip("norm", 1.0, 2.0, 1.0, 0.5, clipped=True),
        overhead=overhead,
    )


def event(
    message: str, severity: Literal["info", "warning", "error"] = "warning", number: int = 0
) -> RunNote:
    return RunNote(step=number, time=0.0, severity=severity, message=message, source="test")


def test_plain_lines_come_at_most_once_per_interval_and_at_the_end() -> None:
    """Without a terminal: the first step, one line an interval, and the last step; no more."""
    stream, now = io.StringIO(), [0.0]
    exporter = ConsoleExporter(stream=stream, interval=10.0, clock=lambda: now[0])
    exporter.open(RUN)
    for number in range(25):
        now[0] = float(number)
        exporter.export([step(number)])
    exporter.close()
    lines = [line.split(" | ")[0] for line in stream.getvalue().splitlines()]
    assert lines == ["gradtrace: run run", "step 0", "step 10", "step 20", "step 24"]


def test_the_last_line_is_not_written_twice() -> None:
    """Closing writes nothing when the last step was shown already, nor without any step."""
    stream = io.StringIO()
    exporter = ConsoleExporter(stream=stream, interval=0.0)
    exporter.open(RUN)
    exporter.export([step(0)])
    before = stream.getvalue()
    exporter.close()
    assert stream.getvalue() == before
    ConsoleExporter(stream=stream).close()
    assert stream.getvalue() == before


def test_the_line_tells_how_the_run_goes() -> None:
    """Step, loss, norm, clip share, spikes and overhead, and bad steps once there are any."""
    exporter = ConsoleExporter(stream=io.StringIO())
    exporter.open(RUN)
    exporter.export([step(4)])
    assert exporter.line() == (
        "step 4 | loss 1.5 | norm 2 | clipped 100% | spikes 0 | overhead 1.0%"
    )
    exporter.export([StepRecord(step=5, time=0.0, loss=math.nan, skipped=True)])
    assert exporter.line() == (
        "step 5 | loss nan | clipped 50% | spikes 0 | non-finite 1 | skipped 1 | overhead 1.0%"
    )


def test_overhead_is_the_share_of_the_time_between_steps() -> None:
    """The first step, whose time is not known, does not count into the share."""
    exporter = ConsoleExporter(stream=io.StringIO())
    exporter.open(RUN)
    exporter.export([step(0, overhead=5.0, seconds=None), step(1), step(2, overhead=0.03)])
    assert exporter.line().endswith("overhead 2.0%")


def test_a_terminal_has_one_line_that_changes() -> None:
    """On a terminal the line is rewritten in place and its end stays; the cursor comes back."""
    stream = Terminal()
    exporter = ConsoleExporter(stream=stream, refresh=0.0)
    exporter.open(RUN)
    for number in range(3):
        exporter.export([step(number)])
    exporter.close()
    text = stream.getvalue()
    assert all(f"step {number} |" in text for number in range(3))
    assert "\x1b[2K" in text
    body = text[text.index("step 0") : text.index("step 2")]
    assert "\n" not in body
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_terminal_is_not_rewritten_for_every_batch() -> None:
    """Within `refresh` seconds the line stands still; closing shows the last step."""
    stream = Terminal()
    exporter = ConsoleExporter(stream=stream, refresh=1.0, clock=lambda: 0.0)
    exporter.open(RUN)
    for number in range(5):
        exporter.export([step(number)])
    assert "step 0 |" in stream.getvalue() and "step 1 |" not in stream.getvalue()
    exporter.close()
    assert "step 4 |" in stream.getvalue() and "step 3 |" not in stream.getvalue()


def test_the_programs_own_streams_stay() -> None:
    """A live line does not replace sys.stdout or sys.stderr."""
    before = (sys.stdout, sys.stderr)
    exporter = ConsoleExporter(stream=Terminal())
    exporter.open(RUN)
    assert (sys.stdout, sys.stderr) == before
    exporter.close()
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("terminal", [False, True])
def test_warnings_and_errors_stand_above_the_line(terminal: bool) -> None:
    """Events of severity warning and error are written at once, information is not."""
    stream = Terminal() if terminal else io.StringIO()
    exporter = ConsoleExporter(stream=stream, interval=100.0)
    exporter.open(RUN)
    exporter.export([step(0)])
    exporter.export([event("careful", number=3), event("broken", "error"), event("hm", "info")])
    text = stream.getvalue()
    assert "step 3: careful" in text and "step 0: broken" in text and "hm" not in text
    exporter.close()


def test_names_are_shown_as_they_are() -> None:
    """Brackets are not markup, and control characters do not reach the terminal."""
    stream = io.StringIO()
    exporter = ConsoleExporter(stream=stream)
    exporter.open(RunInfo(name="[red]x[/red]", started=0.0))
    exporter.export([event("layer [bold]w[/] \x1b[2J\r\n odd")])
    text = stream.getvalue()
    assert "[red]x[/red]" in text and "[bold]w[/]" in text
    assert "\x1b" not in text and "\r" not in text and text.count("\n") == 2


def test_a_stream_of_another_encoding_gets_what_it_can_take() -> None:
    """Characters a stream cannot encode are replaced; the output goes on."""
    stream = Ascii()
    exporter = ConsoleExporter(stream=stream)
    exporter.open(RUN)
    exporter.export([event("\N{GREEK SMALL LETTER ALPHA} rises"), step(0)])
    assert "step 0: ? rises" in stream.getvalue() and "loss 1.5" in stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("writes", range(8))
def test_a_terminal_may_go_away_at_any_moment(terminal: bool, writes: int) -> None:
    """Whichever write fails, no method raises, and every record is counted once."""
    exporter = ConsoleExporter(stream=Gone(terminal=terminal, writes=writes), refresh=0.0)
    exporter.open(RUN)
    for number in range(3):
        exporter.export([step(number), event("careful")])
    assert exporter.line().startswith("step 2 |")
    exporter.close()


def test_a_closed_stream_is_no_error() -> None:
    """A stream closed by the program ends the output quietly."""
    stream = io.StringIO()
    exporter = ConsoleExporter(stream=stream, interval=0.0)
    exporter.open(RUN)
    stream.close()
    exporter.export([step(0), event("careful")])
    exporter.close()


def test_other_ranks_write_their_events_only() -> None:
    """Many ranks in one terminal: rank 0 has the line, the others say what went wrong."""
    stream = io.StringIO()
    exporter = ConsoleExporter(stream=stream, interval=0.0)
    exporter.open(RunInfo(name="run", started=0.0, rank=2, world_size=4))
    exporter.export([step(0), event("careful")])
    exporter.close()
    assert stream.getvalue() == "rank 2, step 0: careful\n"


@pytest.mark.parametrize("value", [-1.0, math.nan])
@pytest.mark.parametrize("name", ["interval", "refresh"])
def test_times_are_checked_where_they_are_given(name: str, value: float) -> None:
    """A negative time is refused by the constructor, by name."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=name):
        ConsoleExporter(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": "x"}, "interval is 'x'; expected a number of seconds"),
        ({"refresh": None}, "refresh is None; expected a number of seconds"),
        ({"stream": "log.txt"}, "stream is 'log.txt'; expected a text stream.*open"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(options: dict[str, Any], message: str) -> None:
    """Where they are given, with what was expected."""
    with pytest.raises(TypeError, match=message):
        ConsoleExporter(**options)


def test_importing_the_exporters_loads_none() -> None:
    """`import gradtrace.exporters` loads no exporter; asking for one by name loads that one."""
    code = (
        "import sys, gradtrace.exporters as e\n"
        "assert not [m for m in sys.modules if m.startswith('gradtrace.exporters.')]\n"
        "assert set(e.__all__) <= set(dir(e))\n"
        "for name in e.__all__: getattr(e, name)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_an_unknown_exporter_is_an_attribute_error() -> None:
    """A misspelt name fails as it does in any module."""
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = gradtrace.exporters.Nonsense  # type: ignore[attr-defined]
