"""A step while it is open: what the taps have put in so far, values still on their devices.

`OpenStep` lives in the training thread. `sealed` turns it into a `RawStep`, which holds no tensor
but their places in one flat list, for the hand-over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from gradtrace.measure.rows import ROW, Positions, Reading, gather, unscale
from gradtrace.records import Array, ClipKind
from gradtrace.sampling import Due

Slot = int
Decode = Callable[[Sequence[Array]], tuple[Positions, Array]]


@dataclass(slots=True)
class ClipCall:
    """One call of a clipping function, or a change of gradients nobody announced.

    `norm` is the total norm the call worked with (None where it computed none), `order` its
    p. `after` are readings of the clipped gradients, for clipping that is no plain scaling.
    """

    kind: ClipKind
    positions: tuple[int, ...]
    threshold: float | Tensor = float("nan")
    norm: Tensor | None = None
    order: float = 2.0
    after: list[Reading] = field(default_factory=list)
    inferred: bool = False
    cosine: Tensor | None = None


@dataclass(slots=True)
class Batch:
    """A delivered batch; `sample_ids` is turned into plain values in the background."""

    epoch: int
    batch_index: int
    ordinal: int
    sample_ids: Any = None


@dataclass(slots=True)
class OpenStep:
    """Mutable; owned by the training thread until it is sealed."""

    due: Due
    losses: list[Tensor] = field(default_factory=list)
    clips: list[ClipCall] = field(default_factory=list)
    tables: list[tuple[str, list[Reading]]] = field(default_factory=list)
    histograms: list[tuple[frozenset[int], list[Reading]]] = field(default_factory=list)
    """Positions, and the readings of their gradients' histograms."""
    counting: bool | None = None
    """Whether histograms are taken; None until that was decided."""
    batches: list[Batch] = field(default_factory=list)
    logged: dict[str, float | Tensor] = field(default_factory=dict)
    lr: list[float | Tensor] = field(default_factory=list)
    scale: Tensor | None = None
    found_inf: list[Tensor] = field(default_factory=list)
    skipped: bool = False
    remarks: set[str] = field(default_factory=set)
    stepped: list[Any] = field(default_factory=list)
    """Weak references to the optimizers that have stepped."""
    ended: float = 0.0
    """Unix time of the last optimizer step."""

    def __bool__(self) -> bool:
        """Whether anything that makes a step has happened."""
        return bool(self.losses or self.stepped or self.clips or self.tables or self.skipped)

    def count(self, positions: Iterable[int], readings: list[Reading]) -> None:
        """Takes histograms; earlier ones of the same gradients are let go."""
        new = frozenset(positions)
        self.histograms = [one for one in self.histograms if not one[0] <= new]
        self.histograms.append((new, readings))

    def absorb(self, later: OpenStep) -> None:
        """Takes over what a later part of the same step holds."""
        self.losses += later.losses
        self.clips += later.clips
        self.tables += later.tables
        for positions, readings in later.histograms:
            self.count(positions, readings)
        if self.counting is None:
            self.counting = later.counting
        self.batches += later.batches
        self.logged |= later.logged
        self.lr += later.lr
        self.scale = later.scale if later.scale is not None else self.scale
        self.found_inf += later.found_inf
        self.skipped |= later.skipped
        self.remarks |= later.remarks
        self.stepped += later.stepped

    def sealed(self, step: int, **facts: Any) -> tuple[RawStep, list[Tensor]]:
        """The step as tensor-free structure and the flat list of its tensors."""
        tensors: list[Tensor] = []

        def slot(tensor: Tensor) -> Slot:
            tensors.append(tensor)
            return len(tensors) - 1

        def value(number: float | Tensor) -> float | _Ref:
            return _Ref(slot(number)) if isinstance(number, Tensor) else float(number)

        def reading(r: Reading) -> RawReading:
            divisor = None if r.divisor is None else slot(r.divisor)
            start = len(tensors)
            tensors.extend(r.tensors)
            return RawReading(r.decode, start, len(tensors), divisor)

        raw = RawStep(
            step=step,
            time=self.ended or time.time(),
            losses=[slot(loss) for loss in self.losses],
            clips=[
                RawClip(
                    clip.kind,
                    clip.positions,
                    value(clip.threshold),
                    None if clip.norm is None else slot(clip.norm),
                    clip.order,
                    [reading(r) for r in clip.after],
                    clip.inferred,
                    None if clip.cosine is None else slot(clip.cosine),
                )
                for clip in self.clips
            ],
            tables=[(name, [reading(r) for r in readings]) for name, readings in self.tables],
            histograms=[reading(r) for _, readings in self.histograms for r in readings],
            batches=self.batches,
            logged={name: value(number) for name, number in self.logged.items()},
            lr=[value(number) for number in self.lr],
            scale=None if self.scale is None else slot(self.scale),
            found_inf=[slot(flag) for flag in self.found_inf],
            skipped=self.skipped,
            remarks=tuple(sorted(self.remarks)),
            **facts,
        )
        return raw, tensors


@dataclass(frozen=True, slots=True)
class _Ref:
    slot: Slot


@dataclass(slots=True)
class LateLog:
    """Values logged after a step was handed over and before anything of the next one happened."""

    values: dict[str, float | _Ref]

    @classmethod
    def of(cls, values: Mapping[str, float | Tensor]) -> LateLog:
        """The values, tensors among them replaced by their place among the tensors."""
        numbers: dict[str, float | _Ref] = {}
        tensors = 0
        for name, value in values.items():
            if isinstance(value, Tensor):
                numbers[name] = _Ref(tensors)
                tensors += 1
            else:
                numbers[name] = float(value)
        return cls(numbers)


@dataclass(slots=True)
class RawReading:
    """A reading whose tensors are slots `start` to `stop`."""

    decode: Decode
    start: int
    stop: int
    divisor: Slot | None


@dataclass(slots=True)
class RawClip:
    """A `ClipCall` without its tensors."""

    kind: ClipKind
    positions: tuple[int, ...]
    threshold: float | _Ref
    norm: Slot | None
    order: float
    after: list[RawReading]
    inferred: bool
    cosine: Slot | None = None


@dataclass(slots=True)
class RawStep:
    """A sealed step: what the background thread turns into a `StepRecord`."""

    step: int
    time: float
    losses: list[Slot]
    clips: list[RawClip]
    tables: list[tuple[str, list[RawReading]]]
    histograms: list[RawReading]
    batches: list[Batch]
    logged: dict[str, float | _Ref]
    lr: list[float | _Ref]
    scale: Slot | None
    found_inf: list[Slot]
    skipped: bool
    remarks: tuple[str, ...]
    names: dict[str, tuple[str, ...]]
    """The row names of each table, by position."""
    shown: Positions
    """The positions of parameters that take part in training at this step."""
    readable: bool
    """False on the meta device: there are no values."""
    overhead: float
    rank: int


def number(value: float | _Ref, arrays: Sequence[Array]) -> float:
    """A number that may have travelled as a tensor."""
    return float(arrays[value.slot].reshape(-1)[0]) if isinstance(value, _Ref) else value


def rows_of(readings: Iterable[RawReading], arrays: Sequence[Array]) -> tuple[Positions, Array]:
    """The rows of one measurement, ordered by position, a row a layer."""
    parts = []
    for reading in readings:
        positions, rows = reading.decode(arrays[reading.start : reading.stop])
        if reading.divisor is not None:
            rows = unscale(rows, float(arrays[reading.divisor].reshape(-1)[0]))
        parts.append((positions, rows))
    if not parts:
        return np.empty(0, dtype=np.intp), np.empty((0, len(ROW)))
    if len(parts) == 1:
        return gather(*parts[0])
    return gather(np.concatenate([p for p, _ in parts]), np.concatenate([r for _, r in parts]))
