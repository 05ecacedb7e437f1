"""A start that fails, wherever it does, leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import patched_places
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Trace, gradtrace, load_run
from gradtrace.assemble.thread import Background
from gradtrace.collect.observer import Observer
from gradtrace.records import Record
from gradtrace.session import wiring as module
from gradtrace.taps import optimizers, scaler
from gradtrace.testing import RecordingExporter

MODEL = nn.Linear(2, 2)


class RefusedError(Exception):
    """What a test makes a stage raise."""


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise RefusedError("on purpose")


class Refusing(RecordingExporter):
    def open(self, run: Any) -> None:
        raise RefusedError("on purpose")


def run_log(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "RunLog", refuse)


def described(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "describe_modules", refuse)


def detector(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "SpikeDetector", refuse)


def thread(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Background, "start", refuse)


def attached(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Observer, "attach", refuse)


def first_tap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gradtrace.taps.backward.backward_target", refuse)


def a_later_tap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(optimizers, "attach", refuse)


def the_last_tap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gradtrace.taps.loaders.attach", refuse)


def after_the_taps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "is_sharded", refuse)


def interrupted(patch: pytest.MonkeyPatch) -> None:
    def pressed(*args: Any) -> Any:
        raise KeyboardInterrupt

    patch.setattr(scaler, "scaler_targets", pressed)


STAGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    f.__name__: f
    for f in (
        *(run_log, described, detector, thread, attached, first_tap, a_later_tap),
        *(the_last_tap, after_the_taps, interrupted),
    )
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_start_that_fails_leaves_nothing(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hook, thread or directory, exporters closed; then name and exporter serve the next run."""
    loader = DataLoader(TensorDataset(torch.zeros(4, 2)))
    exporter = RecordingExporter()
    before, threads = patched_places(loader), set(threading.enumerate())

    def new() -> Trace:
        return gradtrace(MODEL, loader=loader, directory=tmp_path, run="r", exporters=[exporter])

    with monkeypatch.context() as patch:
        STAGES[stage](patch)
        trace = new()
        with pytest.raises((RefusedError, KeyboardInterrupt)):
            trace.start()
    assert patched_places(loader) == before
    assert set(threading.enumerate()) <= threads
    assert list(tmp_path.iterdir()) == []
    assert exporter.closed == exporter.opened
    with pytest.raises(RuntimeError, match=r"this trace is closed; expected a new one"):
        trace.start()
    trace.close()
    trace.step()
    assert trace.flush() and trace.steps == []
    with new():
        pass
    assert load_run(tmp_path / "r").info["status"] == "finished"


def test_an_exporter_that_cannot_open(tmp_path: Path) -> None:
    """What its `open` raises comes out, those opened before it are closed, later ones untouched."""
    exporters = [RecordingExporter("a"), Refusing("b"), RecordingExporter("c")]
    before, threads = patched_places(), set(threading.enumerate())
    with pytest.raises(RefusedError, match="on purpose"):
        gradtrace(MODEL, directory=tmp_path, run="r", exporters=exporters).start()
    assert [exporter.closed for exporter in exporters] == [True, False, False]
    assert [exporter.opened for exporter in exporters] == [True, False, False]
    assert patched_places() == before and set(threading.enumerate()) <= threads
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_taken_meanwhile(tmp_path: Path) -> None:
    """Of two traces of one name the second cannot start, and the first's run is left alone."""
    exporter = RecordingExporter()
    first = gradtrace(MODEL, directory=tmp_path, run="r")
    second = gradtrace(MODEL, directory=tmp_path, run="r", exporters=[exporter])
    before = patched_places()
    with first:
        with pytest.raises(ValueError, match=r"'r', which exists already.*choose another"):
            second.start()
        assert first.path is not None and (first.path / "run.json").exists()
    assert patched_places() == before and not exporter.opened
    assert load_run(tmp_path / "r").info["status"] == "finished"


def test_a_directory_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on without a run directory, which is said once."""

    def full(folder: Path, name: str) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(module, "create_run_directory", full)
    exporter = RecordingExporter()
    with gradtrace(MODEL, directory=tmp_path, exporters=[exporter]) as trace:
        assert trace.path is None
        trace.log(x=1.0)
    [note] = trace.notes
    assert note.source == "run log" and "no space left" in note.message
    assert exporter.run is not None and exporter.run.path is None


def test_sinks_get_records_in_order(tmp_path: Path) -> None:
    """A callback finds the spike's step in the trace, in its events, and offered to exporters."""
    from spiking import dataset, train

    found: list[bool] = []
    traces: list[Trace] = []

    def look(spike: Any) -> None:
        trace = traces[0]
        known: list[Record] = [*trace.steps, *trace.events]
        found.append(spike in known and any(record.step == spike.step for record in trace.steps))

    def during(trace: Trace, step: int) -> None:
        traces[:] = [trace]

    _, trace = train(dataset(77), tmp_path, epochs=2, on_spike=look, during=during)
    assert found and all(found) and len(found) == len(trace.spikes)


def test_a_run_tells_what_it_is(tmp_path: Path) -> None:
    """Exporters and `run.json` get names, shapes, sampling, config and versions."""
    exporter = RecordingExporter()
    with gradtrace(
        {"m": MODEL}, directory=tmp_path, run="r", exporters=[exporter], config={"lr": 0.1}
    ):
        pass
    info, run = load_run(tmp_path / "r").info, exporter.run
    assert run is not None and run.path == tmp_path / "r"
    assert [p["name"] for p in run.parameters] == ["m.weight", "m.bias"]
    assert [m["name"] for m in run.modules] == ["m"]
    assert run.sampling["gradients"] == 1 and run.config == {"lr": 0.1}
    assert run.versions["torch"] == torch.__version__
    for key in ("name", "rank", "world_size", "parameters", "modules", "config", "versions"):
        assert info[key] == getattr(run, key), key
