from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.records import MOMENT_COLUMNS, LayerTable, RunInfo, RunNote, SkippedStep, StepRecord
from gradtrace.records.histograms import BINS, LayerHistograms
from gradtrace.runlog import thinning
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.reader import load_run
from gradtrace.runlog.writer import RunLog

NAMES = tuple(map(str, range(40)))


def record(step: int, tables: tuple[str, ...] = ("gradients",)) -> StepRecord:
    values = np.full((40, 6), float(step))
    layers = dict.fromkeys(tables, LayerTable(NAMES, values, MOMENT_COLUMNS))
    return StepRecord(step, float(step), **layers)  # type: ignore[arg-type]


def skipped(step: int) -> SkippedStep:
    return SkippedStep(step=step, time=0.0, severity="info", message="", scale=1.0)


def open_log(tmp_path: Path, **options: Any) -> RunLog:
    path = create_run_directory(tmp_path, "run")
    return RunLog(path, RunInfo("run", 0.0, path), flush_seconds=1e9, **options)


def used(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def write(log: RunLog, steps: range, events: tuple[int, ...] = (), every: int = 50) -> None:
    for step in steps:
        log.append([record(step), *(skipped(step) for event in events if event == step)])
        if step % every == every - 1:
            log.flush()


def steps_of(path: Path, table: str) -> set[int]:
    return set(getattr(load_run(path), table).column("step").to_pylist())


def test_a_long_run_stays_within_its_budget(tmp_path: Path) -> None:
    """The directory stays near `max_bytes`; what is left is every 10th or 100th old step and all
    recent ones, and the steps table is untouched while layer tables suffice.
    """
    log = open_log(tmp_path, max_bytes=2_000_000)
    peak = 0
    for start in range(0, 3000, 100):
        write(log, range(start, start + 100))
        peak = max(peak, used(log.path))
    assert peak < 2_200_000
    gradients = steps_of(log.path, "gradients")
    assert set(range(0, 3000, 100)) <= gradients
    assert set(range(2950, 3000)) <= gradients
    assert len(gradients) < 1000
    old = {step for step in gradients if step < 1000}
    assert all(step % 10 == 0 for step in old)
    assert steps_of(log.path, "steps") == set(range(3000))


def test_neighbourhoods_of_events_are_kept_whole(tmp_path: Path) -> None:
    """From 50 steps before an event to 20 after, all tables keep every step; notes do not count."""
    log = open_log(tmp_path, max_bytes=500_000)
    note = RunNote(step=200, time=0.0, severity="info", message="", source="")
    log.append([note])
    write(log, range(1500), events=(700,))
    kept = set(range(650, 721))
    for table in ("gradients", "steps"):
        steps = steps_of(log.path, table)
        assert kept <= steps
        assert not {649, 721, 199, 201} & steps
    assert load_run(log.path).events == [note, skipped(700)]


def test_steps_that_are_left_have_right_values(tmp_path: Path) -> None:
    """Records of a thinned run are those appended, without the tables that were thinned away."""
    log = open_log(tmp_path, max_bytes=500_000)
    write(log, range(1500), events=(700,))
    log.close({})
    whole = 0
    for item in load_run(log.path).records():
        if isinstance(item, StepRecord):
            wanted = record(item.step)
            assert item in (wanted, record(item.step, ()))
            whole += item == wanted
    assert whole >= 71


def test_layers_go_before_steps(tmp_path: Path) -> None:
    """Steps are thinned only when layer tables are at every 100th; both then keep the same ones."""
    log = open_log(tmp_path, max_bytes=500_000)
    write(log, range(2000))
    old = {step for step in steps_of(log.path, "gradients") if step < 1000}
    assert old <= set(range(0, 1000, 100))
    steps = {step for step in steps_of(log.path, "steps") if step < 1000}
    assert old <= steps
    assert len(steps) < 1000


@pytest.mark.parametrize("segment_bytes", [1, 100_000])
def test_tables_measured_seldom_are_thinned_too(tmp_path: Path, segment_bytes: int) -> None:
    """A table of every 50th step keeps every 10th of those, not all of them, even with a step a
    segment.
    """
    log = open_log(tmp_path, max_bytes=200_000, segment_bytes=segment_bytes)
    for step in range(0, 20_000, 50):
        log.append([record(step)])
        log.flush()
    old = {step for step in steps_of(log.path, "gradients") if step < 5000}
    assert old <= set(range(0, 5000, 500))
    assert old


def test_run_json_tells_what_was_thinned(tmp_path: Path) -> None:
    """Thinned ranges are listed with how much is left, neighbours of one level as one range."""
    log = open_log(tmp_path, max_bytes=1_000_000)
    write(log, range(1500))
    log.close({})
    entries = load_run(log.path).info["thinned"]
    assert entries
    assert len(entries) < 10
    for entry in entries:
        inside = range(entry["first_step"], entry["last_step"] + 1)
        kept = {step for step in steps_of(log.path, entry["table"]) if step in inside}
        assert kept == {step for step in inside if step % entry["kept_every"] == 0}


def test_a_budget_that_cannot_be_met_is_said_once(tmp_path: Path) -> None:
    """When all is neighbourhood nothing is thinned, nothing hangs, and one sentence says so."""
    told: list[str] = []
    log = open_log(tmp_path, max_bytes=50_000, on_error=told.append)
    write(log, range(500), events=tuple(range(0, 500, 20)))
    log.close({})
    assert len(told) == 1
    assert "expected at most 50000" in told[0]
    assert steps_of(log.path, "gradients") == set(range(500))
    assert log.lost == 0


def test_one_append_does_not_rewrite_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn of thinning stops after its share of time, the next goes on."""
    now = 0.0

    def clock() -> float:
        return now

    rewritten = []
    real = thinning.thin_segment

    def slow(segment: thinning.Segment, *rest: Any) -> bool:
        nonlocal now
        now += 0.2
        rewritten.append(segment.path.name)
        return real(segment, *rest)

    monkeypatch.setattr(thinning, "thin_segment", slow)
    thinner = thinning.Thinner(1, clock=clock)
    for number in range(3):
        path = tmp_path / f"steps-{number:06}.arrows"
        thinner.add(thinning.Segment("steps", path, number, number, 100))
    thinner.run(0, 1000)
    assert rewritten == ["steps-000000.arrows"]
    thinner.run(0, 1000)
    assert rewritten == ["steps-000000.arrows", "steps-000001.arrows"]


def test_a_rewrite_that_fails_leaves_the_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk refuses the rewrite, data and log stay as they were, no scrap is left, and it
    is tried again later.
    """
    told: list[str] = []
    now = 0.0
    log = open_log(tmp_path, max_bytes=100_000, on_error=told.append, clock=lambda: now)
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if "arrows" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    write(log, range(500))
    assert steps_of(log.path, "gradients") == set(range(500))
    assert not list(log.path.glob(".*.tmp"))
    assert len(told) == 1
    monkeypatch.undo()
    now = 100.0
    log.flush()
    assert steps_of(log.path, "gradients") < set(range(500))
    assert 1 not in steps_of(log.path, "gradients")


def test_histograms_are_small_and_stay_so_when_thinned(tmp_path: Path) -> None:
    """Their files take a fraction of their bytes, thinned ones too, and read back equal."""
    rng = np.random.default_rng(0)
    shape = rng.poisson(np.exp(-np.square(np.linspace(-6, 6, BINS)))[None] * 300.0, (40, BINS))
    found = LayerHistograms(NAMES, shape.astype(np.int64), np.exp2(np.arange(40.0) - 20))
    log = open_log(tmp_path, max_bytes=4_000_000)
    for step in range(1500):
        log.append([StepRecord(step, float(step), histograms=found)])
        if step % 50 == 49:
            log.flush()
    log.close({})
    run = load_run(log.path)
    kept = [r for r in run.records() if isinstance(r, StepRecord) and r.histograms is not None]
    assert run.info["thinned"] and 100 < len(kept) < 1500
    assert all(r.histograms == found for r in kept)
    size = sum(file.stat().st_size for file in log.path.glob("histograms-*"))
    assert size < len(kept) * found.nbytes / 5
