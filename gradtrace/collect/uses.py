"""What becomes of gradients: changed by the loop, thrown away, or used by an optimizer."""

from __future__ import annotations

from collections.abc import Sequence

from gradtrace.collect.borders import Borders
from gradtrace.collect.clipping import Clipping
from gradtrace.collect.discards import Discards
from gradtrace.collect.ledger import Changes, Ledger
from gradtrace.collect.measuring import Note
from gradtrace.handover.step import Batch, Lost, Part
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Pending

_MOST_USUAL = 64
"""Sets of gradients that backwards have written; a loop that writes others looks each time."""


class Uses:
    """Keeps ledger, readings and clips in agreement, and the open step with them.

    Training thread, and only the one that trains: gradients are looked at.
    """

    def __init__(
        self,
        parameters: Parameters,
        *,
        ledger: Ledger,
        reader: GradientReader,
        clipping: Clipping,
        borders: Borders,
        note: Note,
    ) -> None:
        self._parameters = parameters
        self._ledger = ledger
        self._reader = reader
        self._clipping = clipping
        self._borders = borders
        self._note = note
        self._discards = Discards(parameters)
        self._carried: list[Batch] = []
        self._backwards = 0
        # By the place of a piece in its step: how many backwards led to it the last time.
        self._usual: dict[int, int] = {}
        self._written: set[tuple[int, ...]] = set()
        self.in_closure = False
        """Whether an optimizer evaluates a closure."""

    # -- what a loop does to gradients ---

    def settle(self) -> None:
        """Takes note of what has happened to gradients since the last look."""
        self._take(self._ledger.settle())

    def grow(self) -> None:
        """Takes note of new and replaced parameters; O(1) while there are none."""
        self._take(self._ledger.grow())

    def zeroed(self, positions: Sequence[int]) -> None:
        """A `zero_grad` of these has returned."""
        self._ledger.zeroed(positions)
        if self._ledger.alive and not self.in_closure:
            # Gradients that nothing has used: the forward that led to them has been measured, the
            # next one has not.
            self.settle()
            if not self._ledger.alive:
                self._borders.measure_anew()

    def look(self, positions: Sequence[int]) -> None:
        """As `settle`, before a step that will use the gradients at `positions`."""
        changes = self._ledger.settle()
        changed, changes.changed = changes.changed, []
        self._take(changes)
        self._clipping.changed(changed)
        step = self._borders.open
        if step.due.gradients:
            self._clipping.note_changes(step, positions)

    def _take(self, changes: Changes) -> None:
        if changes.changed:
            self._reader.stale(changes.changed)
            self._clipping.unclipped(changes.changed)
        if not self._borders.open.measured.isdisjoint(changes.cleared):
            # Somebody clipped what had been used, and was read for that.
            self._borders.open.forget(changes.cleared)
            self._reader.gone(changes.cleared)
        if changes.replaced:
            self._reader.gone(changes.replaced)
            self._clipping.unclipped(changes.replaced)
        if changes.dropped:
            self._drop(changes.dropped, changes.lost)
            self._reader.gone(changes.dropped)
            self._clipping.unclipped(changes.dropped)

    def _drop(self, positions: Sequence[int], parts: list[Part]) -> None:
        """Gradients were thrown away, and with them what was read of them or done to them."""
        self._borders.forget(positions)
        measured: Lost | None = None
        if self._ledger.alive:
            self._borders.open.forget(positions)
        else:
            measured = self._measured(positions)
            self._backwards = 0
        if self.in_closure:
            # An evaluation that the optimizer has used before this one; the batch is the same.
            self._carried += [batch for part in parts for batch in part.batches]
        elif parts:
            self._discards.add(parts, measured)
            if self._discards.many:
                # What forwards that came to nothing have left does not pile up.
                self._borders.measure_anew()

    def _measured(self, positions: Sequence[int]) -> Lost:
        step = self._borders.open
        measured = step.take_measurements()
        if not self._reader.is_fresh(positions):
            measured.tables = []  # a later backward has added to what was read
        if not self._clipping.has_clipped(positions):
            measured.clips = []
        measured.divisor = None if step.scale is None else Pending(step.scale)
        return measured

    # -- backwards ---

    def written(self, part: Part) -> list[int]:
        """The positions of the gradients that a backward has written; none for another model's."""
        written = self._ledger.written(part)
        # Some that are usually written were not: they may have been replaced by new ones.
        key = tuple(written)
        if key and key in self._written:
            return written
        if self._parameters.refresh():
            written += self._ledger.found(part)
            self.grow()  # before the new ones are read
            return written
        if len(self._written) < _MOST_USUAL:
            self._written.add(key)
        return written

    def backward(self, written: Sequence[int]) -> list[Batch]:
        """A backward has written these; returns batches of evaluations that came to nothing."""
        self._backwards += 1
        self._discards.backward(written)
        self._reader.stale(written)
        self._clipping.unclipped(written)
        carried, self._carried = self._carried, []
        return carried

    @property
    def expects_use(self) -> bool:
        """Whether so many backwards have been added up as led to the step the last time."""
        return self._backwards >= self._usual.get(len(self._borders.pieces), 1)

    # -- uses ---

    def use(self, positions: Sequence[int], *, made: bool = False) -> bool:
        """The gradients at these positions have been used: what led to them is the open step's.

        `made` tells that they are of the loop's own making. Returns whether any backward led to
        them that no step has had.
        """
        step = self._borders.open
        made = made or self._ledger.made(positions)
        settled = self._discards.settle(self._ledger.use(positions), made=made)
        if self._backwards:
            self._usual[len(self._borders.pieces)] = self._backwards
            self._backwards = 0
        step.used.update(positions)
        step.parts += settled.parts
        step.lost += settled.lost
        if settled.last is not None and not any(t == "gradients" for t, _ in step.tables):
            step.put_back(settled.last)
        self._reader.gone(positions)
        self._clipping.unclipped(positions)
        return bool(settled.parts)

    def rest(self) -> list[Lost]:
        """What was thrown away and no step has followed."""
        return self._discards.rest()

    @property
    def discarded(self) -> int:
        """How often gradients were thrown away."""
        return self._discards.count

    @property
    def lost(self) -> int:
        """The same, whatever was done with them before."""
        return self._discards.lost
