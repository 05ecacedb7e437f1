"""Each step's values as keys and numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from build import spike

from gradtrace.metrics.step_values import StepValues
from gradtrace.records import MOMENT_COLUMNS, Clip, LayerTable, RunInfo, StepRecord

INFO = RunInfo(name="run", started=0.0, path=Path(), parameters=[{"name": "w", "shape": (2,)}])


def test_every_key_of_a_step() -> None:
    """The names of the contract, the user's own below logged/, NaN left out unless asked for."""
    clip = Clip("norm", 1.0, 2.0, 1.0, 0.5, True)
    step = StepRecord(
        step=4,
        time=0.0,
        loss=math.nan,
        grad_norm=2.0,
        lr=(0.1, 0.2),
        clip=clip,
        gradients=LayerTable(("w",), np.ones((1, 6)), MOMENT_COLUMNS),
        logged={"accuracy": 0.5},
        scores={"loss": 0.2, "grad_norm": 0.7},
    )
    values = StepValues(INFO, layers=1)
    assert values.update(spike(4)) is None
    assert values.update(step) == {
        "gradtrace/step": 4,
        "gradtrace/grad_norm": 2.0,
        "gradtrace/grad_norm_clipped": 1.0,
        "gradtrace/clip/coefficient": 0.5,
        "gradtrace/clip/fraction": 1.0,
        "gradtrace/lr_0": 0.1,
        "gradtrace/lr_1": 0.2,
        "gradtrace/spike_score": 0.7,
        "gradtrace/spikes": 1,
        "gradtrace/nonfinite_steps": 1,
        "gradtrace/skipped_steps": 0,
        "gradtrace/clipped_steps": 1,
        "gradtrace/overhead_seconds": 0,
        "gradtrace/layers/w/grad_norm": 1.0,
        "gradtrace/layers/w/zero_fraction": 1.0,
        "gradtrace/logged/accuracy": 0.5,
    }
    everything = StepValues(INFO, finite=False).update(step)
    assert everything is not None and math.isnan(everything["gradtrace/loss"])


def test_lost_records_are_told_where_they_are_known() -> None:
    """Within a trace each step has the sum over all its exporters; elsewhere there is none."""
    values = StepValues(INFO)
    lost = {"mlflow": 2, "wandb": 3}
    values.watch(lambda: lost)
    told = values.update(StepRecord(step=0, time=0.0))
    assert told is not None and told["gradtrace/dropped_records"] == 5
    lost["wandb"] = 4
    told = values.update(StepRecord(step=1, time=0.0))
    assert told is not None and told["gradtrace/dropped_records"] == 6
