"""Runs beside the user's, and in the user's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from build import healthy
from fresh_python import run_python
from fresh_runs import fresh_run
from mlflow_server import black_hole
from patience import patience
from spiking import dataset, train
from wandb_file import file_of
from wandb_runs import assert_complete

from gradtrace.exporters.wandb import WandbExporter

KEY = "0" * 40


@pytest.mark.slow
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


@pytest.mark.slow
def test_groups_and_modes_follow_the_users_run(tmp_path: Path) -> None:
    """The user's group is ours unless one is given; so is a mode the user's run was made with."""
    import wandb

    with wandb.init(group="many", mode="disabled"):
        disabled = WandbExporter()
        disabled.open(fresh_run())
        disabled.export([healthy(0)])
        disabled.close()
    with wandb.init(group="many", mode="offline"):
        followed, given = WandbExporter(), WandbExporter(group="other")
        for exporter in (followed, given):
            exporter.open(fresh_run())
            exporter.export([healthy(0)])
            exporter.close()
    assert disabled.run.disabled
    assert file_of(followed.run).run["run_group"] == "many"
    assert file_of(given.run).run["run_group"] == "other"


@pytest.mark.slow
def test_ranks_are_one_group() -> None:
    """Of many ranks each has a run of its own in a group with the trace's name."""
    exporter = WandbExporter()
    exporter.open(fresh_run("big", rank=3, world_size=8))
    exporter.export([healthy(0)])
    exporter.close()
    run = file_of(exporter.run).run
    assert (run["run_group"], run["display_name"]) == ("big", "big-rank3")


@pytest.mark.slow
def test_the_users_later_run_is_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb.init()` while a trace goes on makes the user's run; the environment's id is theirs."""
    import wandb

    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    exporter = WandbExporter()
    exporter.open(fresh_run())
    exporter.export([healthy(0)])
    user = wandb.init()
    assert user is not exporter.run and user.id == "theirs" != exporter.run.id
    wandb.log({"x": 1})
    wandb.finish()
    exporter.export([healthy(1)])
    exporter.close()
    assert set(file_of(exporter.run).steps) == {0, 1}
    assert [row["x"] for row in file_of(user).rows] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True])
def test_attached_rows_ride_on_the_users_commits(tmp_path: Path, explicit: bool) -> None:
    """With `attach=True` values stand in the user's rows; none of the user's is lost."""
    import wandb

    user = wandb.init()
    exporter = WandbExporter(attach=True)

    def during(trace: Any, step: int) -> None:
        assert trace.flush(patience(30))
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
        WandbExporter(attach=True).open(fresh_run())


def test_a_sweep_asks_for_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sweep, where W&B allows one run only, the error names the way out."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    with pytest.raises(ValueError, match="attach=True"):
        WandbExporter().open(fresh_run())


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
        assert time.monotonic() - began < patience(15)
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
    done = run_python(code)
    assert "nobody is logged in to W&B: run `wandb login`" in done.stdout, done.stderr
