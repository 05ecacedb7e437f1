"""Present values and counts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gradtrace.metrics.totals import Totals, is_nonfinite
from gradtrace.records import (
    MOMENT_COLUMNS,
    Clip,
    Event,
    LayerTable,
    NonFinite,
    SkippedStep,
    Spike,
    StepRecord,
)


def clip(*, clipped: bool) -> Clip:
    return Clip("norm", 1.0, 2.0 if clipped else 0.5, 1.0 if clipped else 0.5, 0.5, clipped)


def table(nonfinite: float) -> LayerTable:
    values = np.zeros((2, len(MOMENT_COLUMNS)))
    values[1, MOMENT_COLUMNS.index("nonfinite")] = nonfinite
    return LayerTable(("a", "b"), values, MOMENT_COLUMNS)


def fed(*records: StepRecord | Event) -> dict[str, float]:
    totals = Totals()
    for record in records:
        totals.update(record)
    return totals.values()


def test_values_are_those_of_the_last_step() -> None:
    """Gauges show the last step as it was."""
    record = StepRecord(
        step=7, time=0.0, loss=0.25, lr=(0.1,), grad_norm=2.0, clip=clip(clipped=True)
    )
    assert fed(StepRecord(step=6, time=0.0, loss=9.0, lr=(9.0,)), record) == {
        "step": 7,
        "loss": 0.25,
        "lr": 0.1,
        "grad_norm": 2.0,
        "grad_norm_clipped": 1.0,
        "clip/coefficient": 0.5,
        "clip/fraction": 0.5,
        "spikes": 0,
        "nonfinite_steps": 0,
        "skipped_steps": 0,
        "clipped_steps": 1,
        "overhead_seconds": 0.0,
    }


def test_what_a_step_did_not_have_is_left_out() -> None:
    """A step without loss, norm, clipping and optimizer gives none of their keys."""
    values = fed(
        StepRecord(step=0, time=0.0, loss=1.0, grad_norm=1.0, lr=(1.0,), clip=clip(clipped=False)),
        StepRecord(step=1, time=0.0),
    )
    assert not values.keys() & {"loss", "grad_norm", "grad_norm_clipped", "clip/coefficient", "lr"}


def test_counts_exist_from_the_beginning() -> None:
    """Before the first step the counters are there, at zero."""
    values = fed()
    assert set(values.values()) == {0}
    assert values.keys() == {
        "spikes",
        "nonfinite_steps",
        "skipped_steps",
        "clipped_steps",
        "overhead_seconds",
    }


def test_several_groups_have_a_learning_rate_each() -> None:
    """Several param groups are numbered, one is not."""
    values = fed(StepRecord(step=0, time=0.0, lr=(0.1, 0.01)))
    assert values["lr_0"] == 0.1 and values["lr_1"] == 0.01 and "lr" not in values


@pytest.mark.parametrize("count", [1, 99, 100, 101, 350])
def test_the_clip_fraction_is_that_of_the_last_hundred_steps(count: int) -> None:
    """Equal to the mean over the last 100 flags, at every length."""
    flags = [bool(x) for x in np.random.default_rng(count).random(count) < 0.3]
    values = fed(
        *(StepRecord(step=i, time=0.0, clip=clip(clipped=flag)) for i, flag in enumerate(flags))
    )
    assert values["clip/fraction"] == pytest.approx(np.mean(flags[-100:]))
    assert values["clipped_steps"] == sum(flags)


def test_steps_without_clipping_count_as_untouched() -> None:
    """A step nobody clipped lowers the fraction."""
    values = fed(
        StepRecord(step=0, time=0.0, clip=clip(clipped=True)), StepRecord(step=1, time=0.0)
    )
    assert values["clip/fraction"] == 0.5


@pytest.mark.parametrize(
    ("record", "bad"),
    [
        (StepRecord(step=0, time=0.0), False),
        (StepRecord(step=0, time=0.0, loss=1.0, grad_norm=1.0, gradients=table(0)), False),
        (StepRecord(step=0, time=0.0, gradients=table(math.nan)), False),
        (StepRecord(step=0, time=0.0, loss=math.nan), True),
        (StepRecord(step=0, time=0.0, loss=1.0, grad_norm=math.inf), True),
        (StepRecord(step=0, time=0.0, loss=1.0, gradients=table(3)), True),
    ],
)
def test_a_bad_step_is_known_by_its_own_record(record: StepRecord, bad: bool) -> None:
    """NaN or Inf in loss, norm or gradients makes a step non-finite; a cell not measured does not.

    Events come for some steps of a streak only and so do not count.
    """
    event = NonFinite(
        step=0,
        time=0.0,
        severity="error",
        message="",
        count=1,
        layers={},
        first_forward=None,
        first_backward=None,
    )
    assert is_nonfinite(record) is bad
    assert fed(record, event)["nonfinite_steps"] == bad


def test_events_and_overhead_add_up() -> None:
    """Spikes are counted once, however long, skipped steps by their records, overhead is summed."""
    spike = Spike(
        step=1,
        time=0.0,
        severity="warning",
        message="",
        signal="loss",
        value=9.0,
        baseline=3.0,
        ratio=3.0,
        score=1.5,
    )
    ended = dataclasses.replace(spike, duration=3)
    skipped = SkippedStep(step=1, time=0.0, severity="info", message="", scale=1.0)
    values = fed(
        StepRecord(step=0, time=0.0, overhead=0.25),
        StepRecord(step=1, time=0.0, overhead=0.5, skipped=True),
        spike,
        skipped,
        dataclasses.replace(spike, signal="grad_norm"),
        ended,
    )
    assert values["spikes"] == 2
    assert values["skipped_steps"] == 1
    assert values["overhead_seconds"] == 0.75
