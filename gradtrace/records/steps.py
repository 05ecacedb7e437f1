"""One optimizer step, and what it was made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gradtrace.records.histograms import LayerHistograms
from gradtrace.records.tables import LAYER_TABLES, LayerTable

SampleId = int | str
ClipKind = Literal["norm", "value", "custom"]


@dataclass(frozen=True, slots=True)
class Clip:
    """What clipping did at one step.

    `norm_before` and `norm_after` are global L2 norms, `threshold` is in the same unit for `kind`
    "norm" and in that of single values for "value". `coefficient` is `norm_after / norm_before` as
    applied (1.0 = untouched), `calls` how many times a clipping function ran. NaN where a number
    could not be observed. `cosine` is that of the gradient before and after value clipping, on
    sampled steps, and not kept on disk.
    """

    kind: ClipKind
    threshold: float
    norm_before: float
    norm_after: float
    coefficient: float
    clipped: bool
    calls: int = 1
    cosine: float = field(default=math.nan, compare=False)


@dataclass(frozen=True, slots=True)
class BatchRef:
    """Which batch a step consumed.

    `epoch`: 0-based iteration over the loader; `batch_index`: 0-based within it; `ordinal`:
    0-based since the trace began; `sample_ids`: dataset indices or the user's own ids.
    """

    epoch: int
    batch_index: int
    ordinal: int
    sample_ids: tuple[SampleId, ...] | None = None


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One of the backwards that a step's gradients were summed from.

    `loss` is None where it could not be seen, `divisor` is what the loop divided it by before the
    backward, `batches` what was delivered for it: since the backward before.
    """

    loss: float | None
    divisor: float = 1.0
    batches: tuple[BatchRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Discard:
    """Gradients that were computed before a step and thrown away.

    `loss` is the mean of their backwards' losses, `norm` the global norm where it was measured or
    clipped, None where they are not known; `batches` are those that no step has had.
    """

    time: float
    loss: float | None = None
    norm: float | None = None
    batches: tuple[BatchRef, ...] = ()


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step.

    `time` is unix seconds, `seconds` the time since the previous step (None on the first), `loss`
    the mean of `losses` (one a backward, in order), `lr` a value a parameter group, `grad_norm` the
    global L2 norm, unscaled and before clipping, `scale` the AMP loss scale, `overhead` the seconds
    gradtrace spent on the training thread for this step, `skipped` whether the AMP scaler kept the
    optimizer from moving, `remarks` what was odd about its clipping (names of `ClipFinding`s),
    `scores` how far each signal was from its baseline in units of the alarm distance (1 = alarm),
    `discarded` what was thrown away since the step before (events tell it; the run log does not
    keep it with the step). `histograms` are those of the gradients. `parts` are its micro-batches
    in order; `batches` are all of theirs, in turn, and any that came after the last backward.
    Tables are None when not sampled.
    """

    step: int
    time: float
    seconds: float | None = None
    loss: float | None = None
    losses: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    grad_norm: float | None = None
    clip: Clip | None = None
    batches: tuple[BatchRef, ...] = ()
    parts: tuple[MicroBatch, ...] = ()
    scale: float | None = None
    gradients: LayerTable | None = None
    weights: LayerTable | None = None
    activations: LayerTable | None = None
    output_gradients: LayerTable | None = None
    updates: LayerTable | None = None
    histograms: LayerHistograms | None = None
    logged: Mapping[str, float] = field(default_factory=dict)
    rank: int = 0
    overhead: float = 0.0
    skipped: bool = False
    remarks: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    discarded: tuple[Discard, ...] = field(default=(), compare=False)


def without_histograms(record: StepRecord) -> tuple[StepRecord, int]:
    """The record without what is largest and missed least, and how many bytes that saves."""
    if record.histograms is None:
        return record, 0
    return dataclasses.replace(record, histograms=None), record.histograms.nbytes


def table_bytes(record: StepRecord) -> int:
    """Bytes that the layer tables of a record take in memory."""
    tables = (getattr(record, name) for name in LAYER_TABLES)
    return sum(table.nbytes for table in tables if table is not None)
