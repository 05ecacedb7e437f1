"""What a spike is compared with: earlier steps, earlier spikes, and the data seen so far."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from gradtrace.records import BatchRef, LayerTable, SampleId, StepRecord

STEPS = 1000
SPIKES = 500
SOURCES = 1000
PAUSE = 3.0
"""A step that took this many times the median was held up by something."""
JUMP = 1.5
"""A learning rate that changed by this factor from one step to the next has jumped."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is remembered of a step."""

    step: int
    loss: float | None
    norm: float | None
    losses: tuple[float, ...]
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
    """A step that had a spike, in whatever signal."""

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
        self.source_steps: Counter[str] = Counter()
        """In how many steps each source of samples took part."""
        self.steps_with_sources = 0
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
            losses=record.losses,
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

    def add_spike(self, facts: Facts) -> None:
        """Remembers that a step had a spike; once a step."""
        if not self.spikes or self.spikes[-1].step != facts.step:
            self.spikes.append(PastSpike(facts.step, facts.batches))

    def before(self, step: int) -> Facts | None:
        """The step before `step`, if it is known."""
        return next((f for f in reversed(self.steps) if f.step < step), None)

    def _add_time(self, facts: Facts) -> None:
        if facts.seconds is None:
            return
        if len(self._seconds) >= 20 and facts.seconds > PAUSE * median(self._seconds):
            self.pauses.append(facts.step)
        self._seconds.append(facts.seconds)

    def _add_batches(self, facts: Facts) -> None:
        sources: set[str] = set()
        longest = 0
        for batch in facts.batches:
            if batch.epoch != self._epoch:
                self._epoch, self._in_epoch = batch.epoch, 0
                self.epoch_starts.append(facts.step)
            ids = batch.sample_ids or ()
            self._in_epoch += len(ids)
            self.samples = max(self.samples, self._in_epoch)
            for sample in ids:
                if isinstance(sample, str):
                    source, length = source_of(sample), length_of(sample)
                    if source is not None:
                        sources.add(source)
                    longest = max(longest, length or 0)
        if sources:
            self.steps_with_sources += 1
            for source in sources:
                if source in self.source_steps or len(self.source_steps) < SOURCES:
                    self.source_steps[source] += 1
        if longest:
            self.lengths.append(longest)


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
