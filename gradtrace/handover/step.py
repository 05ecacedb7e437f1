"""One optimizer step on its way: open while taps put in what they see, then handed over as it is.

What is not known yet is a `Pending` cell, which the hand-over fills; nothing else changes form. The
training thread owns a step until it is put into the hand-over, the background thread afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from gradtrace.measure.reading import Number, Pending, Reading, pending
from gradtrace.measure.rows import Positions
from gradtrace.records import ClipKind
from gradtrace.sampling import Due

_DUE = {
    "gradients": "gradients",
    "activations": "activations",
    "output_gradients": "activations",
    "weights": "updates",
    "updates": "updates",
}
"""What of `Due` asks for a table."""


@dataclass(slots=True)
class ClipCall:
    """One call of a clipping function, or a change of gradients nobody announced.

    `norm` is the total norm the call worked with (None where it computed none), `order` its
    p. `after` are readings of the clipped gradients, for clipping that is no plain scaling.
    """

    kind: ClipKind
    positions: tuple[int, ...]
    threshold: Number = float("nan")
    norm: Pending | None = None
    order: float = 2.0
    after: Sequence[Reading] = ()
    inferred: bool = False
    cosine: Pending | None = None

    def cells(self) -> Iterator[Pending]:
        """What has to arrive."""
        yield from _cells(self.threshold, self.norm, self.cosine)
        for reading in self.after:
            yield from reading.cells()


@dataclass(slots=True)
class Batch:
    """A delivered batch; `sample_ids` is turned into plain values in the background."""

    epoch: int
    batch_index: int
    ordinal: int
    sample_ids: Any = None


@dataclass(slots=True, eq=False)
class Part:
    """A micro-batch: one backward, and the batches that were delivered for it.

    `used` tells that a step has had it: its loss and batches belong to the first optimizer that
    used a gradient it was summed into.
    """

    number: int
    loss: Pending | None
    batches: tuple[Batch, ...] = ()
    divisor: float = 1.0
    used: bool = False


@dataclass(slots=True)
class Lost:
    """Backwards whose gradients were thrown away, and what was measured of them."""

    parts: list[Part]
    tables: list[tuple[str, list[Reading]]] = field(default_factory=list)
    clips: list[ClipCall] = field(default_factory=list)
    divisor: Pending | None = None
    ended: float = 0.0
    by_hand: bool = False
    """The loop moved the parameters by these gradients with code of its own."""

    def cells(self) -> Iterator[Pending]:
        """What has to arrive."""
        yield from _work(self.parts, self.clips, self.tables)
        yield from _cells(self.divisor)


MOST_TABLES = 256
"""Tables of one step beyond which those are let go that later ones replace."""


@dataclass(slots=True)
class Step:
    """Mutable; one thread at a time."""

    due: Due
    parts: list[Part] = field(default_factory=list)
    """The backwards whose gradients were used; known when an optimizer has used them."""
    numbers: set[int] | None = None
    """Of the parts, where pieces were joined: so that joining many costs no more each."""
    batches: list[Batch] = field(default_factory=list)
    """Those of the parts, and any that no backward of this step had."""
    clips: list[ClipCall] = field(default_factory=list)
    tables: list[tuple[str, list[Reading]]] = field(default_factory=list)
    covered: list[tuple[list[Reading], frozenset[int]]] = field(default_factory=list)
    """Of tables of gradients: the positions that they have rows of."""
    crowded: int = MOST_TABLES
    """At how many tables those that were replaced are looked for."""
    void: list[tuple[int, int, frozenset[int]]] = field(default_factory=list)
    """From which table to before which one the rows at these positions count no more."""
    histograms: list[tuple[frozenset[int], list[Reading]]] = field(default_factory=list)
    """Positions, and the readings of their gradients' histograms."""
    unread: bool = False
    """Gradients were changed, nobody knows how, before they were read: they have no numbers."""
    counting: bool | None = None
    """Whether histograms are taken; None until that was decided."""
    logged: dict[str, Number] = field(default_factory=dict)
    lr: list[Number] = field(default_factory=list)
    scale: Tensor | None = None
    """The AMP loss scale, until the step is sealed."""
    divisor: Pending | None = None
    """The same afterwards."""
    found_inf: list[Pending] = field(default_factory=list)
    skipped: bool = False
    remarks: set[str] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    """Positions whose gradients its optimizers have used."""
    measured: set[int] = field(default_factory=set)
    """Positions whose gradients were read in it."""
    stepped: list[Any] = field(default_factory=list)
    """Weak references to the optimizers that have stepped."""
    lost: list[Lost] = field(default_factory=list)
    """What was thrown away since the step before."""
    ended: float = 0.0
    """Unix time of the last optimizer step."""

    # Known when the step is sealed.
    number: int = -1
    rank: int = 0
    names: tuple[str, ...] = ()
    """Of all parameters, by position."""
    modules: tuple[str, ...] = ()
    """The same of modules."""
    shown: Positions = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """The positions of parameters that take part in training at this step."""
    readable: bool = True
    """False on the meta device: there are no values."""
    overhead: float = 0.0
    """Seconds spent on the training thread."""

    def __bool__(self) -> bool:
        """Whether anything that makes a step has happened."""
        return bool(self.parts or self.stepped or self.clips or self.tables or self.skipped)

    def read(self, positions: Iterable[int], readings: list[Reading]) -> None:
        """Takes a reading of the gradients at these positions.

        Gradients that are added up and clipped again and again are read each time; what a later
        reading has replaced is let go from time to time, at a cost that does not grow.
        """
        self.tables.append(("gradients", readings))
        self.covered.append((readings, frozenset(positions)))
        self.measured.update(positions)
        if len(self.tables) <= self.crowded:
            return
        known = {id(one): at for one, at in self.covered}
        later: set[int] = set()
        kept = []
        for table, one in reversed(self.tables):
            at = known.get(id(one)) if table == "gradients" else None
            kept.append(at is None or not at <= later)
            later |= at or set()
        self._keep(kept[::-1])
        self.covered = self.covered[-len(self.tables) :]
        self.crowded = max(MOST_TABLES, 2 * len(self.tables))

    def _keep(self, kept: list[bool]) -> None:
        """Lets go of the other tables."""
        if not all(kept):
            self.void = [(sum(kept[:a]), sum(kept[:b]), gone) for a, b, gone in self.void]
            self.tables = [one for one, keep in zip(self.tables, kept, strict=True) if keep]

    def count(self, positions: Iterable[int], readings: list[Reading]) -> None:
        """Takes histograms; earlier ones of the same gradients are let go."""
        new = frozenset(positions)
        self.histograms = [one for one in self.histograms if not one[0] <= new]
        self.histograms.append((new, readings))

    def asks_for(self, table: str) -> bool:
        """Whether this step measures what a table tells."""
        asked: bool = getattr(self.due, _DUE[table])
        return asked

    def narrow(self, due: Due) -> None:
        """Lets go of what `due` does not ask for: a piece may have measured for either of two."""
        self.due = due
        self._keep([self.asks_for(table) for table, _ in self.tables])
        if not due.histograms:
            self.histograms = []

    def forget(self, positions: Iterable[int]) -> None:
        """These gradients were thrown away: what was read of them, unused as they were, is void."""
        gone = frozenset(positions) - self.used
        if not gone:
            return
        # What was void of the same before reaches less far.
        self.void = [one for one in self.void if one[0] or not one[2] <= gone]
        self.void.append((0, len(self.tables), gone))
        self.histograms = [one for one in self.histograms if not one[0] <= gone]

    def take_measurements(self) -> Lost:
        """What was read and done to gradients, taken out of the step: they were thrown away."""
        tables = [one for one in self.tables if one[0] == "gradients"]
        self.tables = [one for one in self.tables if one[0] != "gradients"]
        lost = Lost([], tables, self.clips)
        if self.unread:
            lost.tables = []
        self.clips, self.histograms, self.void, self.remarks = [], [], [], set()
        self.covered = []
        self.measured = set()
        self.unread = False
        return lost

    def put_back(self, lost: Lost) -> None:
        """These measurements are the step's after all."""
        self.tables = lost.tables + self.tables
        self.clips = lost.clips + self.clips
        lost.tables, lost.clips = [], []

    def absorb(self, later: Step) -> None:
        """Takes over what a later piece of the same step holds."""
        later.narrow(self.due)
        if self.numbers is None or len(self.numbers) != len(self.parts):
            self.numbers = {part.number for part in self.parts}
        new = [part for part in later.parts if part.number not in self.numbers]
        self.parts += new
        self.numbers.update([part.number for part in new])
        self.batches += later.batches
        self.clips += later.clips
        before = len(self.tables)
        self.void += [(before + a, before + b, gone) for a, b, gone in later.void]
        self.tables += later.tables
        self.covered += later.covered
        for positions, readings in later.histograms:
            self.count(positions, readings)
        if self.counting is None:
            self.counting = later.counting
        self.logged |= later.logged
        self.lr += later.lr
        self.scale = later.scale if later.scale is not None else self.scale
        self.found_inf += later.found_inf
        self.skipped |= later.skipped
        self.unread |= later.unread
        self.remarks |= later.remarks
        self.stepped += later.stepped
        self.used |= later.used
        self.measured |= later.measured
        self.lost += later.lost
        self.ended = max(self.ended, later.ended)

    def cells(self) -> Iterator[Pending]:
        """What has to arrive before the step is a record."""
        yield from _work(self.parts, self.clips, self.tables)
        for _, readings in self.histograms:
            for reading in readings:
                yield from reading.cells()
        for lost in self.lost:
            yield from lost.cells()
        yield from _cells(*self.logged.values(), *self.lr, self.divisor, *self.found_inf)


def _work(
    parts: Iterable[Part], clips: Iterable[ClipCall], tables: Iterable[tuple[str, list[Reading]]]
) -> Iterator[Pending]:
    for part in parts:
        if part.loss is not None:
            yield part.loss
    for clip in clips:
        yield from clip.cells()
    for _, readings in tables:
        for reading in readings:
            yield from reading.cells()


@dataclass(slots=True)
class LateLog:
    """Values logged after a step was handed over and before anything of the next one happened."""

    values: dict[str, Number]

    @classmethod
    def of(cls, values: Mapping[str, float | Tensor]) -> LateLog:
        """The values, tensors among them as they will be known."""
        return cls({name: pending(value) for name, value in values.items()})

    def cells(self) -> Iterator[Pending]:
        """What has to arrive."""
        yield from _cells(*self.values.values())


@dataclass(slots=True)
class Leftovers:
    """What was thrown away at the end of a run, when no step has followed."""

    lost: list[Lost]
    readable: bool = True
    """As in `Step`."""

    def cells(self) -> Iterator[Pending]:
        """What has to arrive."""
        for lost in self.lost:
            yield from lost.cells()


Handed = Step | LateLog | Leftovers
"""What is handed over."""


def _cells(*values: Number | None) -> Iterator[Pending]:
    for value in values:
        if isinstance(value, Pending):
            yield value
