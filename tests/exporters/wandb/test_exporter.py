"""Runs in W&B, read back from its own files."""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from build import healthy
from fresh_python import run_python
from fresh_runs import fresh_run
from patience import patience
from spiking import dataset, train
from wandb_file import File, file_of
from wandb_runs import SUPPORT, assert_complete, number

from gradtrace import Sampling, load_run
from gradtrace.exporters.wandb import WandbExporter
from gradtrace.exporters.wandb.texts import COLUMNS
from gradtrace.records import BatchRef, Cause, Spike, StepRecord


def test_an_own_run_tells_all(tmp_path: Path) -> None:
    """Without a run of the user's: every step's values, configuration, spikes and summary."""
    import wandb

    exporter = WandbExporter(project="mine", directory=tmp_path / "elsewhere", name="nice")
    config = {"lr": 1e-3, "model": {"width": 8, "shape": (6, 8)}}
    _, trace = train(dataset(3, 77, 200), tmp_path, run="mine", config=config, exporters=[exporter])
    assert trace.notes == [] and trace.path is not None and trace.spikes
    assert wandb.run is None
    file = file_of(exporter.run)
    assert file.path.is_relative_to(tmp_path / "elsewhere")
    assert_complete(trace.path, file)
    assert (file.run["project"], file.run["display_name"]) == ("mine", "nice")
    assert file.run["job_type"] == "gradtrace"
    assert file.config == {"lr": 1e-3, "model": {"width": 8, "shape": [6, 8]}}
    [metric] = [m for m in file.of("metric") if m.get("glob_name") == "gradtrace/*"]
    assert metric["step_metric"] == "gradtrace/step"
    for layer in ("0", "0.weight", "2"):
        assert f"gradtrace/layers/{layer}/grad_norm" in file.steps[5]

    assert file.summary["gradtrace/spikes"] == len(trace.spikes)
    assert 0 < file.summary["gradtrace/spike_share"] < 1
    assert file.summary["gradtrace/grad_norm_p95"] == trace.clipping.percentiles[95]

    table = file.spikes()
    assert len(table) == len(trace.spikes) and tuple(table[0]) == COLUMNS
    for row, spike in zip(table, trace.spikes, strict=True):
        assert (row["step"], row["signal"], row["value"]) == (spike.step, spike.signal, spike.value)
        assert (row["baseline"], row["ratio"]) == (spike.baseline, spike.ratio)
        blamed = [f"epoch {batch.epoch} batch {batch.batch_index}" for batch in spike.blamed]
        assert row["batch"] == ", ".join(blamed)
        ids = [id_ for batch in spike.blamed for id_ in batch.sample_ids or ()]
        assert row["sample ids"] == ", ".join(map(str, ids))
        assert row["steps"] == spike.duration
        assert row["likely cause"] == ("" if spike.likely is None else spike.likely.message)
    alerts = file.of("alert")
    assert {alert["title"] for alert in alerts} == {f"Spike in {s.signal}" for s in trace.spikes}
    assert str(trace.spikes[0].message) in alerts[0]["text"]


def test_histograms_arrive_where_they_were_sampled(tmp_path: Path) -> None:
    """Sampled steps hold each shown layer's counts and edges, as the run log has them."""
    exporter = WandbExporter(layers=["0.*", "2.weight"])
    sampling = Sampling(histograms=10, first=0, burst=0)
    data = dataset()
    _, trace = train(data, tmp_path, epochs=1, sampling=sampling, exporters=[exporter])
    assert trace.path is not None
    file = file_of(exporter.run)
    names = ("0.weight", "0.bias", "2.weight")
    keys = {f"gradtrace/layers/{name}/gradients" for name in names}
    seen = 0
    for one in load_run(trace.path).records():
        if not isinstance(one, StepRecord):
            continue
        row = file.steps[one.step]
        found = {key for key in row if "/gradients" in key}
        if one.step % 10:
            assert not found
            continue
        assert found == {f"{key}.{part}" for key in keys for part in ("_type", "bins", "values")}
        assert one.histograms is not None
        for name in names:
            counts, edges = one.histograms[name]
            key = f"gradtrace/layers/{name}/gradients"
            bins, values = row[key + ".bins"], row[key + ".values"]
            assert row[key + "._type"] == "histogram" and len(bins) <= 98
            for low, high, value in zip(bins[:-1], bins[1:], values, strict=True):
                assert value == counts[(edges[:-1] >= low) & (edges[1:] <= high)].sum()
            assert sum(values) == (6 * 8 if name == "0.weight" else 8)
            seen += 1
    assert seen == 5 * len(names)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_an_exception_ended_has_failed(tmp_path: Path, fails: bool) -> None:
    """W&B's run ends with code 1 where an exception ended the loop, else with 0."""

    def during(trace: object, step: int) -> None:
        if fails and step == 20:
            raise KeyError(step)

    exporter = WandbExporter()
    with contextlib.suppress(KeyError):
        train(dataset(), tmp_path, epochs=1, exporters=[exporter], during=during)
    [end] = file_of(exporter.run).of("exit")
    assert int(end.get("exit_code", 0)) == int(fails)


def test_what_is_not_finite_arrives() -> None:
    """NaN and Inf are values of a loss and a norm; a cell that was not measured is no value."""
    exporter = WandbExporter()
    exporter.open(fresh_run())
    bad = {"nan": math.nan, "inf": -math.inf, "good": 1.0}
    exporter.export([healthy(0), healthy(1, loss=math.nan, norm=math.inf, logged=bad), healthy(2)])
    exporter.export([healthy(3, layers=[math.nan, 1.0, 1.0])])
    exporter.close()
    steps = file_of(exporter.run).steps
    assert math.isnan(number(steps[1]["gradtrace/loss"]))
    assert number(steps[1]["gradtrace/grad_norm"]) == math.inf
    assert math.isnan(number(steps[1]["gradtrace/logged/nan"]))
    assert number(steps[1]["gradtrace/logged/inf"]) == -math.inf
    assert steps[1]["gradtrace/nonfinite_steps"] == 1
    assert "gradtrace/layers/embed.weight/grad_norm" in steps[2]
    assert "gradtrace/layers/embed.weight/grad_norm" not in steps[3]


def test_odd_names_are_taken() -> None:
    """Names with quotes, newlines, slashes, emoji, 500 characters all arrive, each for itself."""
    odd = ["a'b\"c", "a\nb", "a\tb", "/x//../y/", "..", "\N{FIRE}", "n" * 500, "n" * 501, "\ud800"]
    name = "a 'run' \"of\"\n\N{FIRE} \ud800" + "x" * 500
    exporter = WandbExporter(group="g\x1b[2J" + "g" * 500)
    exporter.open(
        fresh_run(name, config={key: key for key in [*odd, "good one"]} | {"n": {1: {2}}})
    )
    logged = {key: float(at) for at, key in enumerate([*odd, "good one"])}
    spike = Spike(
        step=0,
        time=time.time(),
        severity="warning",
        message="\ud800 \N{FIRE}",
        signal="loss",
        value=math.inf,
        baseline=1.0,
        ratio=math.nan,
        score=1.0,
        blamed=(BatchRef(0, 1, 1, ("\ud800", "a, b\n", "x" * 9000)),),
        causes=(Cause("batch", "\ud800 again", 0.5),),
    )
    exporter.export([healthy(0, logged=logged), spike])
    exporter.close()
    file = file_of(exporter.run)
    [row] = file.steps.values()
    found = {key: v for key, v in row.items() if key.startswith("gradtrace/logged/")}
    assert sorted(found.values()) == sorted(logged.values())
    assert row["gradtrace/logged/good one"] == len(odd)
    assert all(len(key) <= 250 and key.isascii() and key.isprintable() for key in found)
    assert file.run["display_name"].startswith("a 'run' \"of\"\n\N{FIRE} ")
    assert len(file.run["display_name"]) <= 128
    assert file.config["good one"] == "good one" and file.config["n"] == {"1": "{2}"}
    [told] = file.spikes()
    assert told["step"] == 0 and told["sample ids"].startswith(" , a, b\n, xxx")
    assert told["likely cause"] == "  again"
    assert len(file.of("alert")) == 1


def test_what_was_sent_before_is_counted_not_sent() -> None:
    """`remember` brings totals and the table up to date without a row or an alert."""
    first, second = (
        Spike(
            step=step,
            time=when,
            severity="warning",
            message="high",
            signal="loss",
            value=9.0,
            baseline=1.0,
            ratio=9.0,
            score=2.0,
        )
        for step, when in ((1, time.time()), (3, 0.0))
    )
    exporter = WandbExporter()
    exporter.open(fresh_run())
    exporter.remember([healthy(0), healthy(1), first])
    exporter.export([healthy(2), healthy(3), second])
    exporter.close()
    file = file_of(exporter.run)
    assert set(file.steps) == {2, 3}
    assert file.summary["gradtrace/spikes"] == 2
    assert [row["step"] for row in file.spikes()] == [1, 3]
    # The second is long past.
    assert file.of("alert") == []


def test_a_run_without_steps_is_empty() -> None:
    """A trace that ends before its first step leaves a finished run without rows."""
    exporter = WandbExporter()
    exporter.open(fresh_run())
    exporter.close()
    exporter.close()
    assert file_of(exporter.run).rows == []


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {support!r})
from spiking import dataset, train
from gradtrace.exporters.wandb import WandbExporter

def during(trace, step):
    if step == 70:
        trace.flush()
        time.sleep({pause})  # so much of it has been written by then
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.005)

train(dataset(3), Path("runs"), exporters=[WandbExporter()], during=during, run="killed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.7, 3.5])
def test_what_a_killed_training_owes_is_sent_later(tmp_path: Path, pause: float) -> None:
    """SIGKILL for the process: `gradtrace send` delivers what W&B did not write, and no more."""
    code = KILLED.format(support=SUPPORT, pause=pause if pause < 2 else patience(pause))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=patience(60))
    assert done.returncode == -signal.SIGKILL
    command = [str(Path(sys.executable).with_name("gradtrace"))]
    command += ["send", "runs/killed", "--to", "wandb"]
    for _ in range(2):
        sent = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
        assert sent.returncode == 0, sent.stderr
    assert "0 steps" in sent.stdout
    files = [File(path) for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    assert_complete(tmp_path / "runs" / "killed", *files)
    # Nothing is owed after so long, and nothing is sent.
    assert len(files) == (2 if pause < 2 else 1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without wandb the constructor says which pip line brings it."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r'pip install "gradtrace\[wandb\]"'):
        WandbExporter()


def test_importing_the_module_does_not_import_wandb() -> None:
    """Only the constructor loads the package."""
    code = "import sys, gradtrace.exporters.wandb; assert 'wandb' not in sys.modules"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"project": ""}, ValueError, "project is empty"),
        ({"group": 3}, TypeError, "group is 3"),
        ({"mode": "sometimes"}, ValueError, "'offline'"),
        ({"attach": "yes"}, TypeError, "True or False"),
        ({"attach": True, "project": "p", "name": "n"}, ValueError, "leave out project, name"),
        ({"layers": -1}, ValueError, "layers is -1"),
        ({"timeout": 0}, ValueError, "1 or more"),
        ({"timeout": True}, TypeError, "seconds"),
    ],
)
def test_settings_are_checked_where_they_are_given(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A wrong setting is refused by the constructor, by name, with what was expected."""
    with pytest.raises(error, match=words):
        WandbExporter(**options)
