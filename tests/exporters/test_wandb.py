from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import black_hole
from run_values import values_of
from spike_records import record
from spiking import dataset, train
from wandb_file import File, file_of

from gradtrace import Sampling, Spike, load_run
from gradtrace.exporters.wandb.exporter import WandbExporter
from gradtrace.exporters.wandb.texts import COLUMNS
from gradtrace.records import BatchRef, Cause, RunInfo, StepRecord

pytestmark = pytest.mark.skipif(
    find_spec("wandb") is None and not os.environ.get("CI"), reason="wandb is not installed"
)

KEY = "0" * 40


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test has a W&B of its own: settings are read once, when the first run is made."""
    import wandb
    from wandb.sdk.lib.module import unset_globals

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    yield
    with contextlib.suppress(Exception, SystemExit):
        if wandb.run is not None:
            wandb.run.finish()
    # A run whose core died stays the active one otherwise.
    unset_globals()  # type: ignore[no-untyped-call]
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def number(value: Any) -> float:
    """W&B writes NaN and Inf as texts."""
    return float(value)


def core() -> int:
    """The process id of this program's wandb-core."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(folder.name)
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            name = (folder / "cmdline").read_text().split("\0")[0]
            if int(parent) == os.getpid() and state != "Z" and name.endswith("wandb-core"):
                found.append(pid)
    [pid] = found
    return pid


def info(name: str = "run", **fields: Any) -> RunInfo:
    return RunInfo(name=name, started=time.time(), **fields)


def assert_complete(path: Path, *files: File) -> None:
    """Every step's values are as the run log has them, in one file or another."""
    steps = load_run(path).steps.to_pylist()
    assert steps
    found: dict[int, dict[str, Any]] = {}
    for file in files:
        found |= file.steps
    assert sorted(found) == [row["step"] for row in steps]
    for key, series in values_of(path).items():
        logged = {
            s: row[f"gradtrace/{key}"] for s, row in found.items() if f"gradtrace/{key}" in row
        }
        assert logged == pytest.approx(series, rel=1e-12), key


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


def test_the_users_run_goes_on_beside_it(tmp_path: Path) -> None:
    """`wandb.run` stays the user's, none of its rows with explicit steps is missing."""
    import wandb

    user = wandb.init(project="theirs", config={"a": 1})

    def during(trace: object, step: int) -> None:
        assert wandb.run is user
        wandb.log({"mine": step}, step=3 * step)

    exporter = WandbExporter()
    _, trace = train(dataset(3), tmp_path, epochs=1, exporters=[exporter], during=during)
    assert wandb.run is user
    wandb.log({"end": 1}, step=1000)
    wandb.finish()
    theirs, ours = file_of(user), file_of(exporter.run)
    rows = [(row["_step"], row["mine"]) for row in theirs.rows if "mine" in row]
    assert rows == [(3 * step, step) for step in range(50)]
    assert theirs.rows[-1]["end"] == 1
    assert not [key for row in theirs.rows for key in row if key.startswith("gradtrace")]
    assert theirs.config == {"a": 1}
    assert trace.path is not None
    assert_complete(trace.path, ours)
    assert (ours.run["project"], ours.run["run_group"]) == ("theirs", user.id)


def test_groups_and_modes_follow_the_users_run(tmp_path: Path) -> None:
    """The user's group is ours unless one is given; so is a mode the user's run was made with."""
    import wandb

    with wandb.init(group="many", mode="disabled"):
        disabled = WandbExporter()
        disabled.open(info())
        disabled.export([record(0)])
        disabled.close()
    with wandb.init(group="many", mode="offline"):
        followed, given = WandbExporter(), WandbExporter(group="other")
        for exporter in (followed, given):
            exporter.open(info())
            exporter.export([record(0)])
            exporter.close()
    assert disabled.run.disabled
    assert file_of(followed.run).run["run_group"] == "many"
    assert file_of(given.run).run["run_group"] == "other"


def test_ranks_are_one_group() -> None:
    """Of many ranks each has a run of its own in a group with the trace's name."""
    exporter = WandbExporter()
    exporter.open(info("big", rank=3, world_size=8))
    exporter.export([record(0)])
    exporter.close()
    run = file_of(exporter.run).run
    assert (run["run_group"], run["display_name"]) == ("big", "big-rank3")


def test_the_users_later_run_is_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb.init()` while a trace goes on makes the user's run; the environment's id is theirs."""
    import wandb

    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    exporter = WandbExporter()
    exporter.open(info())
    exporter.export([record(0)])
    user = wandb.init()
    assert user is not exporter.run and user.id == "theirs" != exporter.run.id
    wandb.log({"x": 1})
    wandb.finish()
    exporter.export([record(1)])
    exporter.close()
    assert set(file_of(exporter.run).steps) == {0, 1}
    assert [row["x"] for row in file_of(user).rows] == [1]


@pytest.mark.parametrize("explicit", [False, True])
def test_attached_rows_ride_on_the_users_commits(tmp_path: Path, explicit: bool) -> None:
    """With `attach=True` values stand in the user's rows; none of the user's is lost."""
    import wandb

    user = wandb.init()
    exporter = WandbExporter(attach=True)

    def during(trace: Any, step: int) -> None:
        assert trace.flush(30)
        wandb.log({"mine": step}, step=2 * step if explicit else None)

    _, trace = train(dataset(3), tmp_path, exporters=[exporter], during=during)
    assert exporter.run is user and wandb.run is user
    wandb.log({"end": 1})
    wandb.finish()
    file = file_of(user)
    rows = [(row["_step"], row["mine"]) for row in file.rows if "mine" in row]
    assert rows == [(2 * step if explicit else step, step) for step in range(100)]
    assert trace.path is not None
    if explicit:
        # A row with an explicit step stays open until the next one, whose values then win.
        assert set(file.steps) == set(range(1, 100))
    else:
        assert_complete(trace.path, file)
    assert file.summary["gradtrace/spikes"] == len(trace.spikes) == len(file.spikes())


def test_attaching_needs_a_run() -> None:
    """Without an active run `attach=True` is refused when the trace starts."""
    with pytest.raises(ValueError, match=r"wandb\.init"):
        WandbExporter(attach=True).open(info())


def test_a_sweep_asks_for_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sweep, where W&B allows one run only, the error names the way out."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    with pytest.raises(ValueError, match="attach=True"):
        WandbExporter().open(info())


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
    exporter.open(info())
    bad = {"nan": math.nan, "inf": -math.inf, "good": 1.0}
    exporter.export([record(0), record(1, loss=math.nan, norm=math.inf, logged=bad), record(2)])
    exporter.export([record(3, layers=[math.nan, 1.0, 1.0])])
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
    exporter.open(info(name, config={key: key for key in [*odd, "good one"]} | {"n": {1: {2}}}))
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
    exporter.export([record(0, logged=logged), spike])
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


def test_a_batch_that_failed_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails half-way goes on behind the last row that was taken; none twice."""
    exporter = WandbExporter()
    exporter.open(info())
    log, calls = exporter.run.log, []

    def fails(row: Any, **options: Any) -> None:
        calls.append(row)
        if len(calls) == 3:
            raise ValueError("not today")
        log(row, **options)

    monkeypatch.setattr(exporter.run, "log", fails)
    records = [record(step) for step in range(5)]
    with pytest.raises(ValueError, match="not today"):
        exporter.export(records)
    exporter.export(records)
    exporter.export([record(5)])
    exporter.close()
    file = file_of(exporter.run)
    assert list(file.steps) == list(range(6))
    assert file.summary["gradtrace/overhead_seconds"] == 0


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
    exporter.open(info())
    exporter.remember([record(0), record(1), first])
    exporter.export([record(2), record(3), second])
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
    exporter.open(info())
    exporter.close()
    exporter.close()
    assert file_of(exporter.run).rows == []


@pytest.mark.slow
def test_a_killed_core_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SIGKILL for wandb-core in mid-run: no step is missing in the old and the new run's files."""
    import wandb

    user = wandb.init(group="many")
    exporter = WandbExporter()
    runs: list[Any] = []

    def during(trace: Any, step: int) -> None:
        if step == 40:
            assert trace.flush(30)
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
    exporter.open(info())
    exporter.export([record(step) for step in range(5)])
    old = exporter.run
    os.kill(core(), signal.SIGKILL)
    exporter.close()
    assert exporter.run is not old
    file = file_of(exporter.run)
    assert set(file.steps) == set(range(5)) and "gradtrace/spike_share" in file.summary


FROZEN = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {support!r}]
from spiking import dataset, train
from wandb_file import File, file_of
from test_wandb import core
from gradtrace.exporters.wandb.exporter import WandbExporter

exporter = WandbExporter()
times = []

def during(trace, step):
    times.append(time.monotonic())
    if step == 40:
        Path("core.pid").write_text(str(core()))
        os.kill(core(), signal.SIGSTOP)

_, trace = train(dataset(3), Path("runs"), exporters=[exporter], during=during, close_timeout=2.0)
print("loop", times[-1] - times[0])
print("close", time.monotonic() - times[-1])
print("notes", [note.message for note in trace.notes])
print("path", trace.path, flush=True)
"""


@pytest.mark.slow
def test_a_frozen_core_holds_up_nobody(tmp_path: Path) -> None:
    """SIGSTOP for wandb-core: the loop goes on, the trace ends in time, the interpreter exits."""
    here = Path(__file__).parent
    code = FROZEN.format(tests=str(here), support=str(here / "support"))
    began = time.monotonic()
    try:
        # Into files, for the frozen core would keep a pipe open.
        with Path("out").open("w") as out, Path("err").open("w") as err:
            done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=err, timeout=60)
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((tmp_path / "core.pid").read_text()), signal.SIGKILL)
    took = time.monotonic() - began
    assert done.returncode == 0, Path("err").read_text()
    said = dict(line.split(" ", 1) for line in Path("out").read_text().splitlines())
    assert float(said["loop"]) < 5
    assert float(said["close"]) < 2 + 1
    assert "wandb" in said["notes"]
    assert len(load_run(tmp_path / said["path"]).steps) == 100
    assert took < 40


@pytest.mark.slow
def test_a_core_that_goes_on_takes_everything(tmp_path: Path) -> None:
    """Stopped for a while and continued, wandb-core has every row, each once."""
    exporter = WandbExporter()

    def during(trace: Any, step: int) -> None:
        if step == 40:
            assert trace.flush(30)
            stopped = core()
            os.kill(stopped, signal.SIGSTOP)
            threading.Timer(2.0, os.kill, (stopped, signal.SIGCONT)).start()

    _, trace = train(dataset(3), tmp_path, exporters=[exporter], during=during, close_timeout=30.0)
    assert trace.notes == [] and trace.path is not None
    assert_complete(trace.path, file_of(exporter.run))


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {support!r}]
from spiking import dataset, train
from gradtrace.exporters.wandb.exporter import WandbExporter

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
    here = Path(__file__).parent
    code = KILLED.format(tests=str(here), support=str(here / "support"), pause=pause)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    command = [str(Path(sys.executable).with_name("gradtrace"))]
    command += ["send", "runs/killed", "--to", "wandb"]
    for _ in range(2):
        sent = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert sent.returncode == 0, sent.stderr
    assert "0 steps" in sent.stdout
    files = [File(path) for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    assert_complete(tmp_path / "runs" / "killed", *files)
    # Nothing is owed after so long, and nothing is sent.
    assert len(files) == (2 if pause < 2 else 1)


@pytest.mark.slow
def test_a_server_that_never_answers_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online with a black hole for a server: entering, training and leaving take their own time."""
    with black_hole() as url:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        exporter = WandbExporter(timeout=1)
        began = time.monotonic()
        _, trace = train(dataset(), tmp_path, exporters=[exporter], close_timeout=1.0)
        assert time.monotonic() - began < 15
        assert exporter.run is None
        assert any("wandb" in note.message for note in trace.notes)


def test_nobody_is_asked_for_a_key() -> None:
    """Online without a login is refused when the trace starts, and says what to do."""
    # In a process of its own: W&B remembers a key that another test has used.
    code = """
from gradtrace.exporters import WandbExporter
from gradtrace.records import RunInfo
try:
    WandbExporter(mode="online").open(RunInfo(name="run", started=0.0))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "nobody is logged in to W&B: run `wandb login`" in done.stdout, done.stderr


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without wandb the constructor says which pip line brings it."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r'pip install "gradtrace\[wandb\]"'):
        WandbExporter()


def test_importing_the_module_does_not_import_wandb() -> None:
    """Only the constructor loads the package."""
    code = "import sys, gradtrace.exporters.wandb; assert 'wandb' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
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


def test_memory_is_bounded() -> None:
    """What is kept for a new run is a few hundred rows at most."""
    exporter = WandbExporter(mode="disabled")
    exporter.open(info())
    for start in range(0, 2000, 250):
        exporter.export([StepRecord(step=start + n, time=0.0, loss=1.0) for n in range(250)])
    assert len(exporter._sender._sent) <= 512
    exporter.close()
    assert threading.active_count() < 20
