"""The `gradtrace` command, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from spiking import dataset, train
from typer.testing import CliRunner

from gradtrace import SkipSamples, gradtrace, load_run
from gradtrace.cli.app import app
from gradtrace.detect.spikes.detector import latest_spikes
from gradtrace.pipeline.send import deliver
from gradtrace.records import RunInfo
from gradtrace.runlog import Backlog
from gradtrace.testing import RecordingExporter


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the run `small` of three steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, run="small"):
        for _ in range(3):
            model(torch.ones(4, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return tmp_path / "gradtrace-runs"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def test_runs_lists(runs: Path) -> None:
    """`gradtrace runs` lists name, steps and status of each run."""
    code, text = run("runs")
    assert code == 0
    assert "small" in text and "finished" in text and " 3 " in text


def test_runs_of_an_empty_directory(runs: Path) -> None:
    """`gradtrace runs` says so when a directory holds no runs."""
    (runs / "empty").mkdir()
    assert run("runs", str(runs / "empty")) == (0, f"no runs in {runs / 'empty'}")


@pytest.mark.parametrize("absolute", [False, True])
def test_show_by_name_and_by_path(runs: Path, absolute: bool) -> None:
    """`gradtrace show` takes a name below gradtrace-runs as well as a path."""
    code, text = run("show", str(runs / "small") if absolute else "small")
    assert code == 0
    assert "finished, 3 steps" in text
    assert "gradient norm" in text and "weight" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "nowhere"), "no run 'nowhere'"),
        (("show", "."), "is no run directory"),
        (("show",), "Missing argument"),
        (("runs", "nowhere"), "no directory 'nowhere'"),
        (("send", "small"), "Missing option"),
        (("send", "small", "--to", "nobody"), "nobody"),
        (("demo", "--steps", "0"), "steps"),
        (("dance",), "No such command"),
    ],
)
def test_wrong_usage(runs: Path, arguments: tuple[str, ...], words: str) -> None:
    """Wrong usage says what was got and exits with 2."""
    code, text = run(*arguments)
    assert code == 2
    # The box that errors stand in may break lines between words.
    assert words in " ".join(text.replace("│", " ").split())


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


def test_send_again_keeps_what_was_stored(runs: Path) -> None:
    """A delivery from the beginning that cannot begin leaves the cursor where it stood."""
    run("send", "small", "--to", "console")
    [cursor] = (runs / "small" / "cursors").iterdir()
    before = cursor.read_text()

    class Shut(RecordingExporter):
        def open(self, run: RunInfo) -> None:
            raise ConnectionError("no server")

    info = RunInfo(name="small", started=0.0, path=runs / "small")
    with pytest.raises(ConnectionError):
        deliver(Backlog(runs / "small"), info, Shut("console"), again=True)
    assert cursor.read_text() == before


def test_the_warning_comes_before_the_delivery(
    runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the exporter is opened it is known already that the cursor cannot be stored."""
    (runs / "small" / "cursors").write_text("a file is in the way")
    known: list[int] = []

    class Asking(RecordingExporter):
        def open(self, run: RunInfo) -> None:
            known.append(len(caplog.messages))

    info = RunInfo(name="small", started=0.0, path=runs / "small")
    assert deliver(Backlog(runs / "small"), info, Asking()).steps == 3
    assert known == [1] and len(caplog.messages) == 1


def test_runs_lists_folders(runs: Path) -> None:
    """`gradtrace runs` gives the name that `gradtrace show` takes, and a damaged run as such."""
    (runs / "small").rename(runs / "renamed")
    assert "renamed" in run("runs")[1] and "small" not in run("runs")[1]
    assert run("show", "renamed")[0] == 0
    (runs / "renamed" / "run.json").write_text("{")
    assert "damaged" in run("runs")[1]


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
    "arguments", [["openmetrics"], ["console", "file"], ["mlflow-2", "file"], ["nowhere"]]
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


def test_monitoring_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is written for the targets given, once; wrong targets and old files are told."""
    monkeypatch.chdir(tmp_path)
    code, text = run("monitoring", "init", "a b", "--target", "gpu1:9464", "--target", "gpu2:9465")
    assert code == 0 and "docker compose --project-directory 'a b' up" in text
    config = (tmp_path / "a b" / "prometheus.yml").read_text()
    assert '"gpu1:9464", "gpu2:9465"' in config
    code, text = run("monitoring", "init", "a b")
    assert code == 1 and "prometheus.yml" in text and "--force" in text
    assert (tmp_path / "a b" / "prometheus.yml").read_text() == config
    assert run("monitoring", "init", "a b", "--force")[0] == 0
    assert "host.docker.internal:9464" in (tmp_path / "a b" / "prometheus.yml").read_text()
    code, text = run("monitoring", "init", "other", "--target", "http://gpu1")
    assert code == 1 and "host:port" in text and not (tmp_path / "other").exists()


def test_demo_command(runs: Path) -> None:
    """`gradtrace demo` trains, and shows a sample and the summary of the run."""
    code, text = run("demo", "--steps", "2", "--directory", str(runs))
    assert code == 0
    assert "What the model writes now" in text and "2 steps" in text


@pytest.fixture
def spiking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the run `poisoned`, in which sample 77 makes spikes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "dumb")
    train(dataset(77), tmp_path / "gradtrace-runs", epochs=4, run="poisoned")
    return tmp_path


def test_spikes_lists_them(spiking: Path) -> None:
    """`gradtrace spikes` lists step, signal and batch; `--step` tells one in full."""
    found = latest_spikes(load_run(spiking / "gradtrace-runs" / "poisoned").events)
    code, text = run("spikes", "poisoned")
    assert code == 0 and all(f" {spike.step} " in f" {text} " for spike in found)
    code, text = run("spikes", "poisoned", "--step", str(found[-1].step))
    assert code == 0
    assert f"spike at step {found[-1].step}" in text
    assert "77" in text and "suspect" in text and "layers" in text


def test_spikes_draws_one(spiking: Path) -> None:
    """`--figure` writes a picture, and asks for the step where it is missing."""
    step = latest_spikes(load_run(spiking / "gradtrace-runs" / "poisoned").events)[-1].step
    code, text = run("spikes", "poisoned", "--step", str(step), "--figure", "spike.png")
    assert code == 0 and "drawn: spike.png" in text
    assert (spiking / "spike.png").stat().st_size > 10_000
    assert run("spikes", "poisoned", "--figure", "spike.png")[0] == 2
    code, text = run("spikes", "poisoned", "--step", "3")
    assert code == 2 and "no spike at step 3" in text
    code, text = run("spikes", "poisoned", "--step", str(step), "--figure", "no/where.png")
    assert code == 1 and "where.png" in text


def test_spikes_of_a_calm_run(runs: Path) -> None:
    """`gradtrace spikes` says that there are none."""
    assert run("spikes", "small") == (0, "no spikes in small")


def test_bad_batches(spiking: Path) -> None:
    """`gradtrace bad-batches` writes JSON that SkipSamples takes."""
    code, text = run("bad-batches", "poisoned", "--output", "bad.json")
    assert code == 0 and "1 samples and 0 batches" in text
    assert 77 not in set(SkipSamples(range(400), "bad.json"))
    assert len(set(SkipSamples(range(400), "bad.json"))) == 399
    code, text = run("bad-batches", "poisoned")
    assert code == 0 and json.loads(text)["samples"][0]["id"] == 77
    assert run("bad-batches", "poisoned", "--output", "no/where.json")[0] == 1


def test_names_command_no_terminal(runs: Path) -> None:
    """Escape sequences in the name of a run are shown, not sent."""
    odd = "red\x1b[31mname"
    shutil.copytree(runs / "small", runs / odd)
    info = json.loads((runs / odd / "run.json").read_text()) | {"name": odd}
    (runs / odd / "run.json").write_text(json.dumps(info))
    for arguments in (("runs",), ("show", odd)):
        code, text = run(*arguments)
        assert code == 0 and "\x1b[31m" not in text
        assert "red?[31mname" in text
