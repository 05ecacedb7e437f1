"""Every row arrives, whatever becomes of wandb-core."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from build import healthy, step
from fresh_runs import fresh_run
from patience import patience
from spiking import dataset, train
from wandb_file import file_of
from wandb_runs import assert_complete, core

from gradtrace.exporters.wandb import WandbExporter


def test_a_batch_that_failed_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails half-way goes on behind the last row that was taken; none twice."""
    exporter = WandbExporter()
    exporter.open(fresh_run())
    log, calls = exporter.run.log, []

    def fails(row: Any, **options: Any) -> None:
        calls.append(row)
        if len(calls) == 3:
            raise ValueError("not today")
        log(row, **options)

    monkeypatch.setattr(exporter.run, "log", fails)
    records = [healthy(step) for step in range(5)]
    with pytest.raises(ValueError, match="not today"):
        exporter.export(records)
    exporter.export(records)
    exporter.export([healthy(5)])
    exporter.close()
    file = file_of(exporter.run)
    assert list(file.steps) == list(range(6))
    assert file.summary["gradtrace/overhead_seconds"] == 0


@pytest.mark.slow
def test_a_killed_core_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SIGKILL for wandb-core in mid-run: no step is missing in the old and the new run's files."""
    import wandb

    user = wandb.init(group="many")
    exporter = WandbExporter()
    runs: list[Any] = []

    def during(trace: Any, step: int) -> None:
        if step == 40:
            assert trace.flush(patience(30))
            runs.append(exporter.run)
            os.kill(core(), signal.SIGKILL)

    with caplog.at_level(logging.WARNING, "gradtrace"):
        model, trace = train(dataset(3, 77), tmp_path, exporters=[exporter], during=during)
    assert trace.notes == [] and trace.path is not None
    assert f"W&B run {runs[0].id} is lost" in caplog.text
    assert exporter.run is not runs[0] and wandb.run is user
    old, new = file_of(runs[0]), file_of(exporter.run)
    assert old.run["run_group"] == new.run["run_group"] == "many"
    assert set(range(41, 100)) <= set(new.steps)
    assert_complete(trace.path, old, new)
    assert new.summary["gradtrace/spikes"] == len(trace.spikes) == len(new.spikes())
    bare, _ = train(dataset(3, 77), None)
    for mine, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert mine.equal(theirs)


@pytest.mark.slow
def test_a_core_that_dies_before_the_end_costs_nothing() -> None:
    """Killed after the last export, the rows it may not have written stand in a new run."""
    exporter = WandbExporter()
    exporter.open(fresh_run())
    exporter.export([healthy(step) for step in range(5)])
    old = exporter.run
    os.kill(core(), signal.SIGKILL)
    exporter.close()
    assert exporter.run is not old
    file = file_of(exporter.run)
    assert set(file.steps) == set(range(5)) and "gradtrace/spike_share" in file.summary


@pytest.mark.slow
def test_a_core_that_goes_on_takes_everything(tmp_path: Path) -> None:
    """Stopped for a while and continued, wandb-core has every row, each once."""
    exporter = WandbExporter()

    def during(trace: Any, step: int) -> None:
        if step == 40:
            assert trace.flush(patience(30))
            stopped = core()
            os.kill(stopped, signal.SIGSTOP)
            threading.Timer(2.0, os.kill, (stopped, signal.SIGCONT)).start()

    _, trace = train(dataset(3), tmp_path, exporters=[exporter], during=during)
    assert trace.notes == [] and trace.path is not None
    assert_complete(trace.path, file_of(exporter.run))


def test_memory_is_bounded() -> None:
    """What is kept for a new run is a few hundred rows at most."""
    exporter = WandbExporter(mode="disabled")
    exporter.open(fresh_run())
    for start in range(0, 2000, 250):
        exporter.export([step(start + n, loss=1.0) for n in range(250)])
    assert len(exporter._sender._sent) <= 512
    exporter.close()
    assert threading.active_count() < 20
