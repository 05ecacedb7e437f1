"""Records by hand that have a value for every metric, with names that are hard to keep apart."""

from __future__ import annotations

import numpy as np

from gradtrace.records import (
    ACTIVATION_COLUMNS,
    MOMENT_COLUMNS,
    UPDATE_COLUMNS,
    BatchRef,
    Cause,
    Clip,
    LayerTable,
    Record,
    Spike,
    StepRecord,
)

LAYERS = ("block", "block/grad_norm", "block.0.weight", "block.0.weight/zero_fraction")
"""Names of which some would be folders of others' metrics."""

LOGGED = ("val", "val/loss", "val/loss/mean", "train/loss", "train", "loss")


def rich_records(steps: int = 3) -> list[Record]:
    """Steps with every kind of value, and a spike; the second one adds a param group."""
    records: list[Record] = []
    for step in range(steps):
        values = 1.0 + np.arange(len(LAYERS) * 8, dtype=float).reshape(len(LAYERS), 8) + step
        moments = values[:, : len(MOMENT_COLUMNS)].copy()
        moments[:, MOMENT_COLUMNS.index("nonfinite")] = step == 1
        # Those that come first differ from step to step: both orders are met.
        logged = LOGGED if step % 2 else LOGGED[::-1]
        records.append(
            StepRecord(
                step=step,
                time=1000.0 + step,
                seconds=0.1,
                loss=2.0 + step,
                lr=(0.1,) if step == 0 else (0.1, 0.01),
                grad_norm=3.0 + step,
                clip=Clip("norm", 1.0, 3.0, 1.0, 0.25, True),
                batches=(BatchRef(0, step, step, (step,)),),
                gradients=LayerTable(LAYERS, moments, MOMENT_COLUMNS),
                updates=LayerTable(LAYERS, values[:, :2], UPDATE_COLUMNS),
                activations=LayerTable(LAYERS, values, ACTIVATION_COLUMNS),
                logged={name: float(at) for at, name in enumerate(logged)},
                overhead=0.01,
                skipped=step == 1,
                scores={"loss": 2.0, "grad_norm": 0.25},
            )
        )
    return [*records, two_loader_spike(steps - 1)]


def two_loader_spike(step: int, *, blamed: bool = True) -> Spike:
    """A spike of a step with two losses and four batches, two of each loader.

    Blamed are the two of the second micro-batch: indices 501 and 701, samples "bad" and 77.
    """
    refs = tuple(
        BatchRef(3, index, index, ids)
        for index, ids in (
            (500, ("good", 1)),
            (700, (2, 3)),
            (501, ("bad", 4)),
            (701, (5, 77)),
        )
    )
    return Spike(
        step=step,
        time=1000.0 + step,
        severity="warning",
        message="loss 9 is 9 times its baseline",
        signal="loss",
        value=9.0,
        baseline=1.0,
        ratio=9.0,
        score=2.0,
        batches=refs,
        previous_batches=(BatchRef(3, 499, 499, ("earlier",)),),
        suspect="batch" if blamed else "update",
        blamed=refs[2:] if blamed else (),
        micro_batch=0,
        causes=(Cause("same samples", "unsure", None), Cause("learning rate", "it rose", 0.9)),
    )
