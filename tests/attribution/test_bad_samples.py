"""From spikes to a list of what to leave out: the guilty, and nobody else."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gradtrace import BatchRef, RunInfo, Spike, StepRecord, load_run
from gradtrace.attribution.bad_samples import find_bad
from gradtrace.attribution.skip import read_bad
from gradtrace.attribution.suspects import Suspects, SuspectSample, save_suspects
from gradtrace.records import Event
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.reader import Run
from gradtrace.runlog.writer import RunLog


def recorded(directory: Path, steps: Sequence[StepRecord], events: Sequence[Event]) -> Run:
    path = create_run_directory(directory, f"run-{time.monotonic_ns()}")
    log = RunLog(path, RunInfo(name=path.name, started=0.0, path=path))
    log.append([*steps, *events])
    log.close({})
    return load_run(path)


def step(number: int, ids: Sequence[int | str] | None) -> StepRecord:
    batch = BatchRef(number // 100, number % 100, number, None if ids is None else tuple(ids))
    return StepRecord(step=number, time=float(number), loss=1.0, losses=(1.0,), batches=(batch,))


def spike(at: StepRecord, **fields: object) -> Spike:
    return Spike(
        step=at.step,
        time=at.time,
        severity="warning",
        message="",
        signal="grad_norm",
        value=9.0,
        baseline=1.0,
        score=3.0,
        batches=at.batches,
        **{"blamed": at.batches, "ratio": 9.0} | fields,  # type: ignore[arg-type]
    )


def training(bad: set[int], *, epochs: int, seed: int = 0) -> tuple[list[StepRecord], list[Spike]]:
    """Shuffled epochs of 400 samples in batches of 8; every visit of a bad one is a spike."""
    rng = np.random.default_rng(seed)
    steps: list[StepRecord] = []
    for _ in range(epochs):
        for ids in rng.permutation(400).reshape(-1, 8):
            steps.append(step(len(steps), ids.tolist()))
    return steps, [spike(s) for s in steps if bad & set(s.batches[0].sample_ids or ())]


def test_samples_that_come_back_in_spikes_are_named(tmp_path: Path) -> None:
    """After four epochs the three bad samples of 400 are listed and no clean one, for ten seeds."""
    for seed in range(10):
        steps, spikes = training({3, 70, 399}, epochs=4, seed=seed)
        bad = find_bad(recorded(tmp_path, steps, spikes))
        assert {sample.id for sample in bad.samples} == {3, 70, 399}
        assert all(sample.why == "recurring" and sample.visits == 4 for sample in bad.samples)
        assert bad.batches == () and bad.unexplained == ()


def test_a_sample_that_was_calm_elsewhere_is_not_guilty(tmp_path: Path) -> None:
    """In two spikes, but also in three ordinary steps: not listed, and the spikes stay open."""
    steps = [step(n, (1, n + 100)) for n in range(5)]
    bad = find_bad(recorded(tmp_path, steps, [spike(steps[0]), spike(steps[3])]))
    assert bad.samples == ()
    assert bad.unexplained == (0, 3)


def test_what_cannot_be_told_apart_is_not_listed(tmp_path: Path) -> None:
    """Two samples that were always together."""
    steps = [step(0, (1, 2, 10)), step(1, (1, 2, 11)), step(2, (12, 13))]
    bad = find_bad(recorded(tmp_path, steps, [spike(steps[0]), spike(steps[1])]))
    assert bad.samples == ()


def test_measured_samples_are_listed_after_one_spike(tmp_path: Path) -> None:
    """What `trace.suspects` found to stand out is evidence enough; what did not is none."""
    steps = [step(0, (1, 2)), step(1, (3, 4))]
    run = recorded(tmp_path, steps, [spike(s) for s in steps])
    calm = SuspectSample(2, 1.0, 1.0, 1.0, 1.0, False)
    save_suspects(run.path, Suspects(0, "grad_norm", (SuspectSample(1, 9, 9, 8, 9, True), calm)))
    save_suspects(run.path, Suspects(1, "grad_norm", (SuspectSample(3, 1, 1, 1, 1, False),)))
    [sample] = find_bad(load_run(run.path)).samples
    assert (sample.id, sample.why, sample.steps, sample.norm_ratio) == (1, "measured", (0,), 9)


def test_the_update_before_brings_the_batch_before(tmp_path: Path) -> None:
    """A spike put down to the update looks at what that update was made of, for which the step
    before the spike was no calm one.
    """
    steps = [step(n, (n, n + 50)) for n in range(12)]
    steps[3], steps[8] = step(3, (77, 20)), step(8, (77, 21))
    events = [
        spike(
            steps[n],
            suspect="update",
            previous_batches=steps[n - 1].batches,
            blamed=steps[n - 1].batches,
        )
        for n in (4, 9)
    ]
    bad = find_bad(recorded(tmp_path, steps, events))
    [sample] = bad.samples
    assert (sample.id, sample.why, sample.steps, sample.visits) == (77, "recurring", (4, 9), 2)
    assert bad.unexplained == ()


def test_batches_without_ids_are_listed_by_epoch_and_index(tmp_path: Path) -> None:
    """And the JSON is what SkipSamples and SkipBatches read."""
    steps = [step(n, None) for n in range(120)]
    bad = find_bad(recorded(tmp_path, steps, [spike(steps[105])]))
    [batch] = bad.batches
    assert (batch.epoch, batch.batch_index, batch.step) == (1, 5, 105)
    path = tmp_path / "bad.json"
    path.write_text(bad.to_json())
    assert read_bad(path) == (frozenset(), frozenset({(1, 5)}))
    assert json.loads(bad.to_json())["spikes"] == 1


def test_only_the_batches_held_responsible_are_listed(tmp_path: Path) -> None:
    """Of the four batches of two losses and two loaders the blamed one, whatever the micro-batch
    with the largest loss; a spike without a batch to blame lists none.
    """
    batches = tuple(BatchRef(0, k // 2, k) for k in range(4))
    first = StepRecord(step=0, time=0.0, loss=1.0, batches=batches)
    second = StepRecord(step=1, time=1.0, loss=1.0, batches=(BatchRef(0, 2, 4),))
    events = [
        spike(first, micro_batch=1, blamed=(batches[2],)),
        spike(second, previous_batches=batches, suspect="update", blamed=()),
    ]
    bad = find_bad(recorded(tmp_path, [first, second], events))
    assert [(b.epoch, b.batch_index, b.ordinal, b.step) for b in bad.batches] == [(0, 1, 2, 0)]
    assert bad.spikes == 2 and bad.unexplained == ()


def test_a_clean_batch_of_a_spike_is_not_searched_for_samples(tmp_path: Path) -> None:
    """A sample that recurs in the spikes' steps, but in batches that are not blamed, is clean."""
    steps, events = [], []
    for n in range(3):
        guilty = BatchRef(0, n, 2 * n, (100 + n, 200 + n))
        clean = BatchRef(0, n, 2 * n + 1, (7, 300 + n))
        steps.append(StepRecord(step=n, time=float(n), loss=1.0, batches=(guilty, clean)))
        events.append(spike(steps[-1], blamed=(guilty,)))
    assert find_bad(recorded(tmp_path, steps, events)).samples == ()
    everything = [spike(one) for one in steps]
    assert [bad.id for bad in find_bad(recorded(tmp_path, steps, everything)).samples] == [7]


def test_two_signals_of_one_step_list_a_batch_once(tmp_path: Path) -> None:
    """With the first spike that it is blamed for."""
    one = step(3, None)
    events = [spike(one, blamed=()), spike(one, ratio=5.0), spike(one)]
    events = [dataclasses.replace(e, signal=f"s{k}") for k, e in enumerate(events)]
    [batch] = find_bad(recorded(tmp_path, [one], events)).batches
    assert (batch.signal, batch.ratio) == ("s1", 5.0)


def test_a_run_without_spikes_has_nothing_bad(tmp_path: Path) -> None:
    """An empty list, which skips nothing."""
    bad = find_bad(recorded(tmp_path, [step(0, (1,))], []))
    assert (bad.spikes, bad.samples, bad.batches) == (0, (), ())


def test_the_path_of_a_run_is_enough(tmp_path: Path) -> None:
    """The run is loaded from it; what is no run is told."""
    run = recorded(tmp_path, [step(0, (1,))], [])
    assert find_bad(run.path) == find_bad(str(run.path)) == find_bad(run)
    with pytest.raises(ValueError, match="is no run directory"):
        find_bad(tmp_path / "elsewhere")
    with pytest.raises(TypeError, match="got None; expected the path"):
        find_bad(None)  # type: ignore[arg-type]
