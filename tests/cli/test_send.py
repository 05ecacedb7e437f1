"""`gradtrace send`."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from command_line import run

from gradtrace import exporter as exporter_module
from gradtrace import gradtrace, load_run
from gradtrace.records import RunInfo
from gradtrace.testing import RecordingExporter


def test_send_to_the_console(runs: Path) -> None:
    """`gradtrace send` delivers a finished run to an exporter once, and again on demand."""
    code, text = run("send", "small", "--to", "console")
    assert code == 0
    assert "3 steps and 0 events delivered to console" in text
    assert "0 steps and 0 events delivered" in run("send", "small", "--to", "console")[1]
    assert "3 steps and 0 events" in run("send", "small", "--to", "console", "--again")[1]


def test_send_refuses_a_running_run(runs: Path) -> None:
    """A run that still goes on delivers its records itself."""
    with gradtrace(torch.nn.Linear(1, 1), run="going"):
        code, text = run("send", "going", "--to", "console")
    assert code == 2
    assert "still running" in text


def test_send_to_tensorboard(runs: Path) -> None:
    """`--to tensorboard` writes below the run, or to the log directory given."""
    pytest.importorskip("tensorboard")
    assert run("send", "small", "--to", "tensorboard")[0] == 0
    assert list((runs / "small" / "tensorboard").glob("events.out.tfevents.*"))
    code, text = run("send", "small", "--to", "tensorboard", "board", "--again")
    assert code == 0 and "3 steps" in text
    assert list(Path("board").glob("events.out.tfevents.*"))


def test_send_where_the_cursor_cannot_be_stored(
    runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, before anything is sent, and everything is delivered all the same."""
    (runs / "small" / "cursors").write_text("a file is in the way")
    for _ in range(2):
        caplog.clear()
        code, text = run("send", "small", "--to", "console")
        assert code == 0 and "3 steps and 0 events delivered to console" in text
        [message] = caplog.messages
        assert "cannot be stored" in message and "writable" in message


def test_send_to_a_file_for_prometheus(runs: Path) -> None:
    """`--to openmetrics FILE` writes the whole run, each time, and stores no cursor."""
    # Prometheus knows milliseconds: steps within one leave one sample.
    times = load_run(runs / "small").steps.column("time").to_pylist()
    samples = len({round(when * 1000) for when in times})
    for _ in range(2):
        code, text = run("send", "small", "--to", "openmetrics", "metrics.txt")
        assert code == 0 and "3 steps and 0 events delivered to openmetrics" in text
        lines = Path("metrics.txt").read_text().splitlines()
        assert sum(line.startswith("gradtrace_loss{") for line in lines) == samples
        assert lines[-1] == "# EOF"
    assert not (runs / "small" / "cursors").exists()
    code, text = run("send", "small", "--to", "openmetrics", "no/such/folder/metrics.txt")
    assert code == 1 and "failed" in text


@pytest.mark.parametrize(
    "arguments", [["openmetrics"], ["console", "file"], ["prometheus-2", "9464"], ["nowhere"]]
)
def test_send_says_what_is_wrong(runs: Path, arguments: list[str]) -> None:
    """A path that is missing or not wanted, and an unknown name, are usage errors."""
    assert run("send", "small", "--to", *arguments)[0] == 2


def test_send_to_the_second_of_a_kind(runs: Path) -> None:
    """`console-2` is the second console of a trace: it has a cursor of its own."""
    assert "3 steps" in run("send", "small", "--to", "console")[1]
    assert (
        "3 steps and 0 events delivered to console-2"
        in run("send", "small", "--to", "console-2")[1]
    )
    assert "0 steps" in run("send", "small", "--to", "console-2")[1]


class Folder(RecordingExporter):
    """Somebody's exporter, made with a folder."""

    made: Folder | None = None

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        Folder.made = self

    def open(self, run: RunInfo) -> None:
        if self.name == "nowhere":
            raise ConnectionError("no such place")
        super().open(run)


@pytest.fixture
def somebodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point `somebodys`, which nothing here has heard of."""
    points = [EntryPoint("somebodys", "any:thing", exporter_module.GROUP)]
    monkeypatch.setattr(exporter_module, "entry_points", lambda group: points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Folder)


@pytest.mark.usefixtures("somebodys")
def test_send_hands_the_argument_to_the_entry_point(runs: Path) -> None:
    """Any exporter that is installed gets it as its first setting; what it raises is told."""
    code, text = run("send", "small", "--to", "somebodys", "here")
    assert code == 0 and "3 steps and 0 events delivered to somebodys" in text
    assert Folder.made is not None and Folder.made.name == "here"
    assert isinstance(Folder.made.run, RunInfo) and Folder.made.run.name == "small"
    assert Folder.made.run.path == Path("gradtrace-runs") / "small"
    assert Folder.made.closed and len(Folder.made.steps) == 3
    code, text = run("send", "small", "--to", "somebodys")
    assert code == 2 and "'folder'" in text
    code, text = run("send", "small", "--to", "somebodys-2", "nowhere")
    assert code == 1 and "somebodys-2 failed: ConnectionError: no such place" in text
