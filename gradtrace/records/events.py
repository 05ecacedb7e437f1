"""What happened at a step: one class a kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from gradtrace.records.steps import BatchRef, Clip, StepRecord

Severity = Literal["info", "warning", "error"]
SkipReason = Literal["overflow", "discarded"]


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
    """Gradients were computed and moved nothing; `reason` says why.

    "overflow": the AMP scaler found NaN or Inf at this `scale` and kept the optimizer back; `step`
    is that step. "discarded": the loop threw them away before the step `step`, or after it at the
    end of a run; `loss` is the mean of their losses, `norm` theirs, `batches` what they were
    computed from. In an unbroken `streak` of one reason the events come at lengths 1 to 10, then
    16, 32, 64, ...
    """

    kind: ClassVar[str] = "skipped_step"
    scale: float | None = None
    streak: int = 1
    reason: SkipReason = "overflow"
    loss: float | None = None
    norm: float | None = None
    batches: tuple[BatchRef, ...] = ()


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
    `suspicion` why. `blamed` are the batches held responsible, of the one or of the other (see
    `blamed_step`): those of the micro-batches that stand out where some do, else all; none where
    no batch is to blame, as when the learning rate jumped. Everything that names a spike's batches
    or samples asks it. `micro_batch` is the index in the step's `parts` (in its `losses` where it
    has none) of the largest loss, `layers` those whose own norm rose, largest ratio first;
    `first_forward` and `first_backward` are the first of them in the order of the forward and of
    the backward pass. `nonfinite` counts bad values, `seconds` is the step's time, `causes` come
    most likely first.
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
    blamed: tuple[BatchRef, ...] = ()
    micro_batch: int | None = None
    lr: tuple[float, ...] = ()
    clip: Clip | None = None
    layers: tuple[LayerRise, ...] = ()
    first_forward: str | None = None
    first_backward: str | None = None
    nonfinite: int = 0
    seconds: float | None = None
    causes: tuple[Cause, ...] = ()

    @property
    def blamed_step(self) -> int:
        """The step that consumed the batches in `blamed`: this one, or the one before."""
        return self.step - 1 if self.suspect == "update" else self.step

    @property
    def likely(self) -> Cause | None:
        """The most likely cause; None where there was not enough data to judge any."""
        return next((cause for cause in self.causes if cause.confidence is not None), None)


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

    `finding` names it: "always", "never", "after the step", "no gradients", "twice",
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

    A spike that was written before there was `blamed` gets what was blamed for it then. Raises
    ValueError when the kind is unknown or a field is missing.
    """
    kind = data.get("kind")
    cls = EVENT_TYPES.get(str(kind))
    if cls is None:
        known = ", ".join(sorted(EVENT_TYPES))
        raise ValueError(f"unknown event kind {kind!r}; this version reads: {known}")
    names = {f.name for f in dataclasses.fields(cls)}
    try:
        event = cls(**{key: value for key, value in data.items() if key in names})
    except TypeError as error:
        raise ValueError(f"event of kind {kind!r} lacks a field: {error}") from error
    if isinstance(event, Spike) and "blamed" not in data:
        return dataclasses.replace(event, blamed=_blamed_before(event))
    return event


def _blamed_before(spike: Spike) -> tuple[BatchRef, ...]:
    """What was blamed for a spike that does not say: by the rule of the list of bad batches."""
    if spike.suspect == "update":
        return spike.previous_batches
    if spike.micro_batch is not None and spike.micro_batch < len(spike.batches):
        return (spike.batches[spike.micro_batch],)
    return spike.batches
