"""What flows through gradtrace: frozen records of plain Python and numpy, never tensors.

Nothing here knows who makes a record or who reads it. `StepRecord` is one optimizer step, the
`Event` classes are what happened at a step, `RunInfo` is what an exporter learns when it opens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from gradtrace.histograms import LayerHistograms

Array = npt.NDArray[np.float64]
SampleId = int | str
Severity = Literal["info", "warning", "error"]
ClipKind = Literal["norm", "value", "custom"]

MOMENT_COLUMNS = ("norm", "mean", "std", "max_abs", "zero_fraction", "nonfinite")
ACTIVATION_COLUMNS = (*MOMENT_COLUMNS, "min", "max")
UPDATE_COLUMNS = ("norm", "ratio")

TABLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "gradients": MOMENT_COLUMNS,
    "weights": MOMENT_COLUMNS,
    "activations": ACTIVATION_COLUMNS,
    "signals": MOMENT_COLUMNS,
    "updates": UPDATE_COLUMNS,
}
"""The statistics of a step's layers and their columns; also the names of the run log's files."""

HISTOGRAMS = "histograms"
LAYER_TABLES = (*TABLE_COLUMNS, HISTOGRAMS)
"""The fields of a `StepRecord` that hold a row for each layer."""


def without_histograms(record: StepRecord) -> tuple[StepRecord, int]:
    """The record without what is largest and missed least, and how many bytes that saves."""
    if record.histograms is None:
        return record, 0
    return dataclasses.replace(record, histograms=None), record.histograms.nbytes


def table_bytes(record: StepRecord) -> int:
    """What the layer tables of a record take in memory."""
    tables = (getattr(record, name) for name in LAYER_TABLES)
    return sum(table.nbytes for table in tables if table is not None)


@dataclass(frozen=True, slots=True, eq=False)
class LayerTable:
    """Statistics of many layers at one step: `values[layer, column]`, float64.

    Columns: `norm` (L2), `mean`, `std` (population), `max_abs`, `zero_fraction`, `nonfinite`
    (count); activations also `min` and `max`; updates `norm` and `ratio` (|update| / |weight|).
    NaN in a cell means not measured or not measurable; `nonfinite` tells bad tensors apart.
    """

    names: tuple[str, ...]
    values: Array
    columns: tuple[str, ...]

    def __getitem__(self, key: tuple[str, str]) -> float:
        """One cell: `table["fc1.weight", "norm"]`. Raises KeyError naming what there is."""
        name, column = key
        if name not in self.names:
            shown = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
            raise KeyError(f"no layer {name!r} in this table; it has: {shown}")
        return float(self.column(column)[self.names.index(name)])

    def column(self, column: str) -> Array:
        """All layers' values of one column, shape [layers], in the order of `names`."""
        if column not in self.columns:
            raise KeyError(f"no column {column!r} in this table; it has: {', '.join(self.columns)}")
        values: Array = self.values[:, self.columns.index(column)]
        return values

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        """Equal names, columns and values; NaN cells equal each other."""
        if not isinstance(other, LayerTable):
            return NotImplemented
        return (
            self.names == other.names
            and self.columns == other.columns
            and np.array_equal(self.values, other.values, equal_nan=True)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def nbytes(self) -> int:
        """What the values take."""
        return self.values.nbytes


@dataclass(frozen=True, slots=True)
class Clip:
    """What clipping did at one step.

    `coefficient` is `norm_after / norm_before` as applied (1.0 = untouched), `calls` how many
    times a clipping function ran. NaN where a number could not be observed. `cosine` is that of the
    gradient before and after value clipping, on sampled steps, and not kept on disk.
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
class StepRecord:
    """One optimizer step.

    `time` is unix seconds, `seconds` the time since the previous step (None on the first),
    `loss` the mean of `losses`, `grad_norm` the global L2 norm, unscaled and before clipping,
    `scale` the AMP loss scale, `overhead` the seconds gradtrace spent on the training thread for
    this step, `skipped` whether the AMP scaler kept the optimizer from moving, `remarks` what was
    odd about its clipping (names of `ClipFinding`s), `scores` how far each signal was from its
    baseline in units of the alarm distance (1 = alarm). `histograms` are those of the gradients.
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
    scale: float | None = None
    gradients: LayerTable | None = None
    weights: LayerTable | None = None
    activations: LayerTable | None = None
    signals: LayerTable | None = None
    updates: LayerTable | None = None
    histograms: LayerHistograms | None = None
    logged: Mapping[str, float] = field(default_factory=dict)
    rank: int = 0
    overhead: float = 0.0
    skipped: bool = False
    remarks: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at a step; the subclasses say what."""

    kind: ClassVar[str] = "event"
    step: int
    time: float
    severity: Severity
    message: str
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NonFinite(Event):
    """NaN or Inf reached the loss or the gradients, as seen before clipping spread it.

    `first_forward` and `first_backward` are the first bad layer in the order the forward and the
    backward pass visit them; backpropagation meets `first_backward` first, so the cause is there
    or in the loss. `layers` maps every bad layer to its count of bad values, `count` is their
    sum. `overflow` tells a norm that overflowed although every value is finite. `activation` is
    the first module, in forward order, whose output was bad, on steps that measured activations.
    In an unbroken `streak` the events come at lengths 1 to 10, then 16, 32, 64, ...
    """

    kind: ClassVar[str] = "nonfinite"
    count: int
    layers: Mapping[str, int]
    first_forward: str | None
    first_backward: str | None
    activation: str | None = None
    loss: float | None = None
    overflow: bool = False
    streak: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedStep(Event):
    """The optimizer did not move because the AMP scaler found NaN or Inf at this `scale`."""

    kind: ClassVar[str] = "skipped_step"
    scale: float | None
    streak: int = 1


Suspect = Literal["batch", "update", "unknown"]


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that may explain a spike: a `kind`, its evidence in numbers, and how sure it is.

    `confidence` is between 0 and 1; None says that there was not enough data to judge. `evidence`
    holds numbers, strings and lists of those. `message` is the finding in one sentence.
    """

    kind: str
    message: str
    confidence: float | None
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerRise:
    """A layer whose gradient norm rose at a spike: `ratio` = norm / its own baseline."""

    name: str
    norm: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike(Event):
    """A value far above its own recent baseline.

    `signal` is "loss" or "grad_norm"; `ratio` = value / baseline; `score` is the distance from the
    baseline in units of the alarm distance (1 = alarm). A spike is told at its first step with
    `duration` 1; one that lasted is told again when it has ended, with the same `step` and signal
    and its whole `duration`.

    `batches` is what the step consumed, `previous_batches` what the update before it was made of:
    a loss is high because of its own batch or because of that update, and `suspect` says which,
    `suspicion` why. `micro_batch` is the index of the micro-batch with the largest loss, `layers`
    those whose own norm rose, largest ratio first; `first_forward` and `first_backward` are the
    first of them in the order of the forward and of the backward pass. `nonfinite` counts bad
    values, `seconds` is the step's time, `causes` come most likely first.
    """

    kind: ClassVar[str] = "spike"
    signal: str
    value: float
    baseline: float
    ratio: float
    score: float
    duration: int = 1
    batches: tuple[BatchRef, ...] = ()
    previous_batches: tuple[BatchRef, ...] = ()
    suspect: Suspect = "unknown"
    suspicion: str = ""
    micro_batch: int | None = None
    lr: tuple[float, ...] = ()
    clip: Clip | None = None
    layers: tuple[LayerRise, ...] = ()
    first_forward: str | None = None
    first_backward: str | None = None
    nonfinite: int = 0
    seconds: float | None = None
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelShift(Event):
    """A signal stayed beyond its alarm distance so long that this is taken as its level."""

    kind: ClassVar[str] = "level_shift"
    signal: str
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFinding(Event):
    """Something about how this run clips that its user should know.

    `finding` names it: "always", "never", "no effect", "after the step", "no gradients", "twice",
    "still scaled", "direction". `evidence` holds the numbers it rests on.
    """

    kind: ClassVar[str] = "clip"
    finding: str
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNote(Event):
    """What could not be observed, and why; or what went wrong inside gradtrace."""

    kind: ClassVar[str] = "note"
    source: str


Record = StepRecord | Event

EVENT_TYPES: dict[str, type[Event]] = {
    t.kind: t for t in (Spike, NonFinite, SkippedStep, LevelShift, ClipFinding, RunNote)
}
"""Event classes by `kind`, for reading `events.jsonl`."""


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as a flat JSON-ready mapping, `kind` first."""
    return {"kind": event.kind} | dataclasses.asdict(event)


def event_from_dict(data: Mapping[str, Any]) -> Event:
    """The inverse of `event_to_dict`; fields a newer version added are ignored.

    Raises ValueError when the kind is unknown or a field is missing.
    """
    kind = data.get("kind")
    cls = EVENT_TYPES.get(str(kind))
    if cls is None:
        known = ", ".join(sorted(EVENT_TYPES))
        raise ValueError(f"unknown event kind {kind!r}; this version reads: {known}")
    names = {f.name for f in dataclasses.fields(cls)}
    try:
        return cls(**{key: value for key, value in data.items() if key in names})
    except TypeError as error:
        raise ValueError(f"event of kind {kind!r} lacks a field: {error}") from error


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What ran: handed to `Exporter.open` and written to `run.json`.

    `path` is the run directory, None with `directory=None`. `parameters` and `modules` list
    name, shape and dtype; `config` holds the user's hyper-parameters.
    """

    name: str
    started: float
    path: Path | None = None
    rank: int = 0
    world_size: int = 1
    parameters: Sequence[Mapping[str, Any]] = ()
    modules: Sequence[Mapping[str, Any]] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
