"""A run's summary against plain Python over the same records."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from build import skipped

from gradtrace.detect.clipping import ClippingStats
from gradtrace.records import MOMENT_COLUMNS, Clip, LayerTable, RunInfo, RunNote, StepRecord
from gradtrace.report.summary import Summary, summarize
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.eventlines import event_line
from gradtrace.runlog.reader import load_run
from gradtrace.runlog.writer import RunLog

LAYERS = ("embed.weight", "fc[1].weight", "fc[1].bias")

Write = Callable[[Iterable[StepRecord]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes records to a finished run called `run`."""

    def write(records: Iterable[StepRecord]) -> Path:
        path = create_run_directory(tmp_path, "run")
        log = RunLog(path, RunInfo(name="run", started=1.0, path=path))
        log.append(list(records))
        note = RunNote(
            step=0, time=1.0, severity="warning", message="no [loss] was seen", source="loop"
        )
        log.append([note])
        log.close({"status": "finished"})
        return path

    return write


def table(norms: Iterable[float], nonfinite: Iterable[float] = (0, 0, 0)) -> LayerTable:
    values = np.zeros((len(LAYERS), len(MOMENT_COLUMNS)))
    values[:, MOMENT_COLUMNS.index("norm")] = list(norms)
    values[:, MOMENT_COLUMNS.index("nonfinite")] = list(nonfinite)
    return LayerTable(LAYERS, values, MOMENT_COLUMNS)


def training(count: int = 200) -> list[StepRecord]:
    """Steps with random norms, clipped at 1, of which some are bad, skipped or unseen."""
    random = np.random.default_rng(0)
    records = []
    for step in range(count):
        norms = random.lognormal(size=3) * (0.6, 0.3, 0.1)
        total = float(np.sqrt(np.square(norms).sum()))
        bad = step in (50, 51)
        factor = min(1.0, 1.0 / total)
        records.append(
            StepRecord(
                step=step,
                time=1000.0 + 0.5 * step,
                seconds=0.5 if step else None,
                loss=None if step == 3 else math.nan if bad else float(5 / (step + 1)),
                grad_norm=math.nan if bad else total,
                clip=Clip(
                    kind="norm",
                    threshold=1.0,
                    norm_before=total,
                    norm_after=total * factor,
                    coefficient=factor,
                    clipped=factor < 1,
                )
                if step % 10
                else None,
                gradients=table((math.nan, *norms[1:]), (1, 0, 0)) if bad else table(norms),
                overhead=0.001,
                skipped=step == 50,
            )
        )
    return records


def summary_of(write: Write, records: list[StepRecord]) -> Summary:
    return summarize(load_run(write(records)))


def test_loss_and_counts(write: Write) -> None:
    """First, last and lowest loss, and the counts of steps, are those of the records."""
    records = training()
    summary = summary_of(write, records)
    assert summary.name == "run" and summary.status == "finished"
    assert summary.steps == 200
    assert summary.loss is not None
    assert (summary.loss.first, summary.loss.last) == (5.0, 5 / 200)
    assert (summary.loss.lowest, summary.loss.lowest_step) == (5 / 200, 199)
    assert summary.nonfinite_steps == 2
    assert summary.skipped_steps == 1
    assert summary.events == {"note": 1}
    assert summary.notes == ("no [loss] was seen",)
    assert summary.seconds == pytest.approx(99.5)
    assert summary.overhead == pytest.approx(0.2)
    assert summary.overhead_ratio == pytest.approx(0.2 / 99.5)


@pytest.mark.parametrize(("counted", "expected"), [({"discarded": 5}, 5), ({}, 2)])
def test_what_was_thrown_away_is_counted(
    write: Write, counted: dict[str, int], expected: int
) -> None:
    """As the run says at its end, or by its events where it was killed before."""
    path = write(training(3))
    events = [skipped(1, reason="discarded"), skipped(1, reason="discarded"), skipped(2)]
    with (path / "events.jsonl").open("ab") as file:
        file.writelines(map(event_line, events))
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(info | {"summary": counted}))
    assert summarize(load_run(path)).discarded == expected


def test_unseen_losses_are_not_bad(write: Write) -> None:
    """A loss that was not seen does not count as a non-finite step; one that was NaN does."""
    records = [
        StepRecord(step=0, time=0.0, loss=None, grad_norm=1.0),
        StepRecord(step=1, time=1.0, loss=math.nan, grad_norm=1.0),
        StepRecord(step=2, time=2.0, loss=1.0, grad_norm=math.inf),
    ]
    assert summary_of(write, records).nonfinite_steps == 2


def test_percentiles(write: Write) -> None:
    """Percentiles of the gradient norm leave non-finite norms out."""
    records = training()
    norms = [r.grad_norm for r in records if r.grad_norm is not None and math.isfinite(r.grad_norm)]
    cuts = statistics.quantiles(norms, n=100, method="inclusive")
    summary = summary_of(write, records)
    assert summary.percentiles == pytest.approx({p: cuts[p - 1] for p in (50, 90, 95, 99)})


def test_clipping(write: Write) -> None:
    """Share, median factor and longest streak of clipping are those counted step by step."""
    records = training()
    clips = [record.clip for record in records]
    factors = [clip.coefficient for clip in clips if clip is not None and clip.clipped]
    longest = streak = 0
    for clip in clips:
        streak = streak + 1 if clip is not None and clip.clipped else 0
        longest = max(longest, streak)
    found = summary_of(write, records).clipping
    assert found is not None
    assert found.calls == 180
    assert found.clipped == len(factors)
    assert found.fraction == len(factors) / 200
    assert found.coefficient == pytest.approx(statistics.median(factors))
    assert found.longest_streak == longest > 1
    assert found.threshold == 1.0


def test_layers(write: Write) -> None:
    """Layers have their median norm and mean share of the squared norm, over the sound steps."""
    records = training()
    norms: dict[str, list[float]] = {name: [] for name in LAYERS}
    shares: dict[str, list[float]] = {name: [] for name in LAYERS}
    for record in records:
        gradients = record.gradients
        assert gradients is not None
        if record.step in (50, 51):
            continue
        total = sum(gradients[name, "norm"] ** 2 for name in LAYERS)
        for name in LAYERS:
            norms[name].append(gradients[name, "norm"])
            shares[name].append(gradients[name, "norm"] ** 2 / total)
    layers = summary_of(write, records).layers
    assert [layer.name for layer in layers] == list(LAYERS)
    for layer in layers:
        assert layer.norm == pytest.approx(statistics.median(norms[layer.name]))
        assert layer.share == pytest.approx(statistics.mean(shares[layer.name]))
    assert sum(layer.share for layer in layers) == pytest.approx(1.0)


def test_layer_without_a_gradient(write: Write) -> None:
    """A layer whose gradient was not there has no share, and the others keep theirs."""
    records = [StepRecord(step=0, time=0.0, gradients=table((math.nan, 3.0, 4.0)))]
    layers = summary_of(write, records).layers
    assert [(layer.name, layer.norm) for layer in layers] == [(LAYERS[2], 4.0), (LAYERS[1], 3.0)]
    assert [layer.share for layer in layers] == pytest.approx([16 / 25, 9 / 25])


def test_run_without_steps(write: Write) -> None:
    """A run that ended before its first step is summed up without numbers."""
    summary = summary_of(write, [])
    assert summary.steps == 0
    assert summary.loss is None and summary.clipping is None
    assert summary.percentiles == {} and summary.layers == ()
    assert math.isnan(summary.overhead_ratio)


def alike(count: int, norm: float, clip: Clip) -> list[StepRecord]:
    return [StepRecord(step=n, time=n, grad_norm=norm, clip=clip) for n in range(count)]


@pytest.mark.parametrize("every", [1, 2])
def test_advice_on_clipping_nearly_always(write: Write, every: int) -> None:
    """The share of the steps that clipping ran on, and the threshold that the norms suggest."""
    clip = Clip("norm", 1.0, 5.0, 1.0, 0.2, True)
    records = [
        dataclasses.replace(one, clip=None if one.step % every else clip)
        for one in alike(120, 5.0, clip)
    ]
    [advice] = summary_of(write, records).advice
    assert "100% of the steps that clipping ran on" in advice
    assert "95th percentile of 120 norms, 5," in advice


@pytest.mark.parametrize(
    ("count", "threshold", "told"), [(500, 1.0, 1), (499, 1.0, 0), (500, 0.99, 0)]
)
def test_advice_on_clipping_that_never_engages(
    write: Write, count: int, threshold: float, told: int
) -> None:
    """A threshold ten times the ordinary norm; not a bit below, and not from a few norms."""
    clip = Clip("norm", threshold, 0.1, 0.1, 1.0, False)
    advice = summary_of(write, alike(count, 0.1, clip)).advice
    assert len(advice) == told
    if told:
        assert "never engaged" in advice[0] and "99th percentile of 500 norms, 0.1" in advice[0]


def test_the_threshold_is_suggested_by_the_norms_that_clipping_was_given(write: Write) -> None:
    """Of one of two players: a tenth of the global norm, as `trace.clipping` suggests too."""
    clip = Clip("norm", 0.1, 0.5, 0.1, 0.2, True)
    records = alike(120, 5.0, clip)
    [advice] = summary_of(write, records).advice
    assert "percentile of 120 norms, 0.5," in advice
    stats = ClippingStats()
    for record in records:
        stats.update(record)
    assert stats.summary().suggested == 0.5


def test_no_advice_from_a_few_steps(write: Write) -> None:
    """What a hundred norms do not say is not said."""
    clip = Clip("norm", 1.0, 5.0, 1.0, 0.2, True)
    records = [StepRecord(step=n, time=n, grad_norm=5.0, clip=clip) for n in range(99)]
    assert summary_of(write, records).advice == ()


def test_no_advice_for_healthy_clipping(write: Write) -> None:
    """Clipping that catches outliers only gives no advice."""
    records = [
        StepRecord(
            step=n,
            time=n,
            grad_norm=3.0 if n == 7 else 0.5,
            clip=Clip("norm", 1.0, 3.0, 1.0, 1 / 3, True)
            if n == 7
            else Clip("norm", 1.0, 0.5, 0.5, 1.0, False),
        )
        for n in range(100)
    ]
    assert summary_of(write, records).advice == ()
