"""Records made by hand for the detectors: a healthy run in which single steps are replaced."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradtrace.detect.spikes.detector import SpikeDetector
from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.records import (
    MOMENT_COLUMNS,
    BatchRef,
    Cause,
    Event,
    LayerTable,
    Spike,
    StepRecord,
)

NAMES = ("embed.weight", "block.weight", "head.weight")
ORDER = {"embed": 0, "block": 1, "head": 2}


def record(
    step: int,
    *,
    loss: float = 2.0,
    norm: float = 1.0,
    layers: Sequence[float] | None = None,
    losses: tuple[float, ...] | None = None,
    ids: tuple[int | str, ...] = (),
    lr: float = 0.1,
    bad: int = 0,
    **extra: object,
) -> StepRecord:
    values = np.zeros((3, len(MOMENT_COLUMNS)))
    wobble = 1 + 0.05 * math.sin(step * 1.7)
    values[:, 0] = layers if layers is not None else [0.5 * wobble, 0.5, 0.5]
    values[0, 5] = bad
    losses = (loss * wobble,) if losses is None else losses
    return StepRecord(
        step=step,
        time=float(step),
        seconds=0.1,
        loss=sum(losses) / len(losses),
        losses=losses,
        grad_norm=norm * wobble,
        lr=(lr,),
        gradients=LayerTable(NAMES, values, MOMENT_COLUMNS),
        batches=(BatchRef(step // 50, step % 50, step, ids or (step * 10, step * 10 + 1)),),
        **extra,  # type: ignore[arg-type]
    )


def detector(rule: SpikeRule | None = None) -> SpikeDetector:
    return SpikeDetector(rule or SpikeRule(), ORDER)


def run(found: SpikeDetector, records: Sequence[StepRecord]) -> list[Event]:
    events: list[Event] = []
    for one in records:
        events += found.update(one)
    return events + list(found.finish())


def spikes_of(records: Sequence[StepRecord]) -> list[Spike]:
    """The spikes as they are told at first."""
    return [e for e in run(detector(), records) if isinstance(e, Spike) and e.duration == 1]


def causes(spike: Spike) -> dict[str, Cause]:
    """By kind."""
    return {cause.kind: cause for cause in spike.causes}


def sure(spike: Spike) -> set[str]:
    """Kinds of causes that there was enough data for."""
    return {cause.kind for cause in spike.causes if cause.confidence is not None}
