"""What a spike is compared with: earlier steps, earlier spikes, and the data seen so far."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from gradtrace.records import BatchRef, LayerTable, MicroBatch, SampleId, StepRecord

STEPS = 1000
SPIKES = 500
SOURCES = 1000
PAUSE = 3.0
"""A step that took this many times the median was held up by something."""
JUMP = 1.5
"""A learning rate that rose by this factor from one step to the next has jumped."""
RECENT = 5
"""Steps that something must have been seen in before it is called usual."""
USUAL = 50
"""The newest steps that tell what a loss usually is."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is remembered of a step. `parts` are its micro-batches, as far as they are known."""

    step: int
    loss: float | None
    norm: float | None
    parts: tuple[MicroBatch, ...]
    lr: tuple[float, ...]
    batches: tuple[BatchRef, ...]
    seconds: float | None
    scale: float | None
    skipped: bool
    coefficient: float
    nonfinite: int
    bad_module: str | None
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PastSpike:
    """A step that had a spike, in whatever signal, and the batches blamed for it."""

    step: int
    batches: tuple[BatchRef, ...]


class History:
    """Bounded memory of a run, for judging causes. One thread."""

    def __init__(self) -> None:
        self.steps: deque[Facts] = deque(maxlen=STEPS)
        self.spikes: deque[PastSpike] = deque(maxlen=SPIKES)
        self.epoch_starts: deque[int] = deque(maxlen=100)
        self.pauses: deque[int] = deque(maxlen=SPIKES)
        self.jumps: deque[int] = deque(maxlen=SPIKES)
        self.source_batches: Counter[str] = Counter()
        """In how many batches each source of samples took part."""
        self.batches_with_sources = 0
        self.lengths: deque[int] = deque(maxlen=STEPS)
        """The longest sample of each step."""
        self.samples = 0
        """Samples of the largest epoch so far."""
        self._epoch = -1
        self._in_epoch = 0
        self._seconds: deque[float] = deque(maxlen=101)

    def add(self, record: StepRecord, scores: Mapping[str, float]) -> Facts:
        """Remembers a step."""
        facts = Facts(
            step=record.step,
            loss=record.loss,
            norm=record.grad_norm,
            parts=parts_of(record),
            lr=record.lr,
            batches=record.batches,
            seconds=record.seconds,
            scale=record.scale,
            skipped=record.skipped,
            coefficient=math.nan if record.clip is None else record.clip.coefficient,
            nonfinite=0 if record.gradients is None else bad_values(record.gradients),
            bad_module=_bad_module(record),
            scores=dict(scores),
        )
        last = self.steps[-1] if self.steps else None
        if last is not None and lr_ratio(last.lr, facts.lr) >= JUMP:
            self.jumps.append(facts.step)
        self._add_time(facts)
        self._add_batches(facts)
        self.steps.append(facts)
        return facts

    def add_spike(self, step: int, blamed: tuple[BatchRef, ...]) -> None:
        """Remembers that a step had a spike; once a step, also where both signals did."""
        if self.spikes and self.spikes[-1].step == step:
            blamed = tuple(dict.fromkeys(self.spikes.pop().batches + blamed))
        self.spikes.append(PastSpike(step, blamed))

    def before(self, step: int) -> Facts | None:
        """The step before `step`, if it is known."""
        return next((f for f in reversed(self.steps) if f.step < step), None)

    def usual_losses(self, facts: Facts) -> list[float | None]:
        """What the loss of each of a step's micro-batches usually is; None where that is not known.

        The median loss of the last USUAL steps, or the median in the same place of them if that is
        larger: where a step has two losses of different size, of two tasks or two players, the
        larger one does not stand out by that.
        """
        past = [f for f in self.steps if f.step < facts.step][-USUAL:]
        middle = _median(f.loss for f in past)
        if middle is None or middle <= 0.0:
            return [None] * len(facts.parts)
        alike = [f.parts for f in past if len(f.parts) == len(facts.parts)]
        places = (_median(parts[i].loss for parts in alike) for i in range(len(facts.parts)))
        return [middle if place is None else max(middle, place) for place in places]

    def _add_time(self, facts: Facts) -> None:
        if facts.seconds is None:
            return
        if len(self._seconds) >= 20 and facts.seconds > PAUSE * median(self._seconds):
            self.pauses.append(facts.step)
        self._seconds.append(facts.seconds)

    def _add_batches(self, facts: Facts) -> None:
        longest = 0
        for batch in facts.batches:
            if batch.epoch != self._epoch:
                self._epoch, self._in_epoch = batch.epoch, 0
                self.epoch_starts.append(facts.step)
            ids = batch.sample_ids or ()
            self._in_epoch += len(ids)
            self.samples = max(self.samples, self._in_epoch)
            lengths = (length_of(sample) or 0 for sample in ids if isinstance(sample, str))
            longest = max(longest, max(lengths, default=0))
            self._add_sources(sources_of((batch,)))
        if longest:
            self.lengths.append(longest)

    def _add_sources(self, sources: set[str]) -> None:
        self.batches_with_sources += bool(sources)
        for source in sources:
            if source in self.source_batches or len(self.source_batches) < SOURCES:
                self.source_batches[source] += 1


def parts_of(record: StepRecord) -> tuple[MicroBatch, ...]:
    """The step's micro-batches.

    Where the record does not tell them, as older run logs do not: one for each loss, with its
    batch if there are as many batches, else with none.
    """
    if record.parts:
        return record.parts
    if len(record.losses) == len(record.batches):
        pairs = zip(record.losses, record.batches, strict=True)
        return tuple([MicroBatch(loss, batches=(batch,)) for loss, batch in pairs])
    return tuple([MicroBatch(loss) for loss in record.losses])


def bad_values(table: LayerTable) -> int:
    """How many values of a table's tensors are NaN or Inf, as far as they were counted."""
    return int(np.nansum(table.column("nonfinite")))


def ids_of(batches: Iterable[BatchRef]) -> set[SampleId]:
    """All sample ids of some batches."""
    return {sample for batch in batches for sample in batch.sample_ids or ()}


def source_of(sample: str) -> str | None:
    """The source that an id names: what stands before its first "/" ("web/0173" is from "web")."""
    source, slash, _ = sample.partition("/")
    return source if slash and source else None


def sources_of(batches: Iterable[BatchRef]) -> set[str]:
    """All sources that the ids of some batches name."""
    ids = (sample for batch in batches for sample in batch.sample_ids or ())
    found = {source_of(sample) for sample in ids if isinstance(sample, str)}
    return {source for source in found if source is not None}


def length_of(sample: str) -> int | None:
    """The length that an id names at its end, as in "web/0173#len=4096"."""
    _, mark, length = sample.rpartition("#len=")
    return int(length) if mark and length.isdecimal() else None


def lr_ratio(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    """The largest factor by which a group's learning rate rose; 1 where it is not known."""
    pairs = zip(before, after, strict=False)
    return max((b / a for a, b in pairs if a > 0 and math.isfinite(b)), default=1.0)


def _bad_module(record: StepRecord) -> str | None:
    if record.activations is None:
        return None
    bad = np.flatnonzero(record.activations.column("nonfinite") > 0)
    return record.activations.names[bad[0]] if len(bad) else None


def _median(values: Iterable[float | None]) -> float | None:
    """Of the finite ones; None where they are too few."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return median(known) if len(known) >= RECENT else None
