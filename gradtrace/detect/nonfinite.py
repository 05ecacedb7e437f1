"""NaN and Inf in the loss or the gradients: which layer, and since when."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gradtrace.detect.order import LayerOrder
from gradtrace.records import Event, LayerTable, NonFinite, StepRecord


def announced(streak: int) -> bool:
    """Whether a streak of this length is told: 1 to 10, then 16, 32, 64, ...

    A run that has turned NaN for good must not fill the disk with one event a step.
    """
    return streak <= 10 or (streak & (streak - 1)) == 0


class NonFiniteDetector:
    """Fed every record in order; gives at most one `NonFinite` a step.

    `forward_order` ranks modules by first execution; it may grow. Layers of modules it does not
    know are ranked as the model lists them.
    """

    def __init__(self, forward_order: Mapping[str, int]) -> None:
        self._order = LayerOrder(forward_order)
        self._streak = 0

    def update(self, record: StepRecord) -> list[NonFinite]:
        """The event of this step, if it is bad and its streak is told."""
        bad_layers = _bad(record.gradients)
        bad_loss = record.loss is not None and not math.isfinite(record.loss)
        bad_norm = record.grad_norm is not None and not math.isfinite(record.grad_norm)
        if not (bad_layers or bad_loss or bad_norm):
            self._streak = 0
            return []
        self._streak += 1
        if not announced(self._streak):
            return []
        ordered = self._order.forward(list(bad_layers), record.gradients)
        overflow = bad_norm and not bad_layers and record.gradients is not None
        return [
            NonFinite(
                step=record.step,
                time=record.time,
                severity="info" if record.skipped else "error",
                message=_message(record, ordered, bad_layers, bad_loss, overflow),
                rank=record.rank,
                count=sum(bad_layers.values()),
                layers={name: bad_layers[name] for name in ordered},
                first_forward=ordered[0] if ordered else None,
                first_backward=ordered[-1] if ordered else None,
                activation=next(iter(_bad(record.activations)), None),
                loss=record.loss,
                overflow=overflow,
                streak=self._streak,
            )
        ]

    def finish(self) -> list[Event]:
        """Nothing waits for the end of the run."""
        return []


def _bad(table: LayerTable | None) -> dict[str, int]:
    if table is None:
        return {}
    counts = table.column("nonfinite")
    return {table.names[i]: int(counts[i]) for i in np.flatnonzero(counts > 0)}


def _message(
    record: StepRecord,
    ordered: list[str],
    bad: Mapping[str, int],
    bad_loss: bool,
    overflow: bool,
) -> str:
    if overflow:
        return (
            "the gradient norm overflowed although every gradient is finite: "
            "the values are too large to square"
        )
    parts = []
    if bad_loss:
        parts.append(f"the loss is {record.loss}")
    if ordered:
        parts.append(
            f"{sum(bad.values())} NaN or Inf gradients in {len(ordered)} layers; backward meets "
            f"{ordered[-1]} first, forward {ordered[0]}"
        )
    if not parts:
        parts.append(f"the gradient norm is {record.grad_norm}")
    if record.skipped:
        parts.append("the AMP scaler skipped the step")
    return "; ".join(parts)
