"""Records for tests, a function for each kind: what a test does not care for is filled in.

Fields are those of the records, by name; numbers that belong together agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gradtrace.records import (
    MOMENT_COLUMNS,
    BatchRef,
    Clip,
    LayerTable,
    MicroBatch,
    RunInfo,
    RunNote,
    SkippedStep,
    Spike,
    StepRecord,
)

LAYERS = ("embed.weight", "block.weight", "head.weight")
"""The layers of `healthy` steps."""


def step(number: int = 0, **fields: Any) -> StepRecord:
    """A step of which nothing is known but its number, and what is given."""
    known: dict[str, Any] = {"step": number, "time": float(number)}
    return StepRecord(**known | fields)


def healthy(
    number: int,
    *,
    loss: float = 2.0,
    norm: float = 1.0,
    layers: Sequence[float] | None = None,
    losses: tuple[float, ...] | None = None,
    ids: tuple[int | str, ...] = (),
    lr: float = 0.1,
    bad: int = 0,
    **fields: Any,
) -> StepRecord:
    """A step of a healthy run, whose loss and norm wobble by 5 %; a batch of two samples.

    `layers` are the layers' norms, `bad` how many bad values the first one has.
    """
    wobble = 1 + 0.05 * math.sin(number * 1.7)
    losses = (loss * wobble,) if losses is None else losses
    known: dict[str, Any] = {
        "seconds": 0.1,
        "loss": sum(losses) / len(losses),
        "losses": losses,
        "grad_norm": norm * wobble,
        "lr": (lr,),
        "gradients": table(
            LAYERS,
            norm=[0.5 * wobble, 0.5, 0.5] if layers is None else layers,
            nonfinite=[bad, 0, 0],
        ),
        "batches": (batch(number, ids or (number * 10, number * 10 + 1), per_epoch=50),),
    }
    return step(number, **known | fields)


def table(
    names: Iterable[str],
    columns: tuple[str, ...] = MOMENT_COLUMNS,
    **values: float | Iterable[float],
) -> LayerTable:
    """Zeros, but for the columns given: a value for all layers, or one for each."""
    names = tuple(names)
    cells = np.zeros((len(names), len(columns)))
    for column, given in values.items():
        cells[:, columns.index(column)] = (
            list(given) if isinstance(given, Iterable) else float(given)
        )
    return LayerTable(names, cells, columns)


def batch(
    ordinal: int = 0, ids: Iterable[int | str] | None = None, *, per_epoch: int = 10**9
) -> BatchRef:
    """The batch of this number, of a loader that has so many an epoch."""
    return BatchRef(*divmod(ordinal, per_epoch), ordinal, None if ids is None else tuple(ids))


def part(loss: float | None, *batches: BatchRef, divisor: float = 1.0) -> MicroBatch:
    """A micro-batch."""
    return MicroBatch(loss, divisor, batches)


def clip(threshold: float, norm: float) -> Clip:
    """What norm clipping does to a gradient of this norm."""
    coefficient = min(1.0, threshold / norm) if norm else 1.0
    return Clip("norm", threshold, norm, norm * coefficient, coefficient, coefficient < 1.0)


def spike(number: int = 0, **fields: Any) -> Spike:
    """A spike of the loss to nine times its baseline."""
    known: dict[str, Any] = {
        "step": number,
        "time": float(number),
        "severity": "warning",
        "message": "loss is high",
        "signal": "loss",
        "value": 9.0,
        "baseline": 1.0,
        "ratio": 9.0,
        "score": 2.0,
    }
    return Spike(**known | fields)


def skipped(number: int = 0, **fields: Any) -> SkippedStep:
    """A step that the scaler skipped."""
    known: dict[str, Any] = {
        "step": number,
        "time": float(number),
        "severity": "info",
        "message": "skipped",
        "scale": 1.0,
    }
    return SkippedStep(**known | fields)


def note(number: int = 0, **fields: Any) -> RunNote:
    """A note of nobody's."""
    known: dict[str, Any] = {
        "step": number,
        "time": float(number),
        "severity": "info",
        "message": f"note {number}",
        "source": "test",
    }
    return RunNote(**known | fields)


def run_info(name: str = "run", **fields: Any) -> RunInfo:
    """A run that began at second 0."""
    known: dict[str, Any] = {"name": name, "started": 0.0}
    return RunInfo(**known | fields)
