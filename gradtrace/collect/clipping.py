"""Clipping as it happens: calls of torch's functions, and changes of gradients nobody announced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from gradtrace.collect.ledger import Ledger
from gradtrace.handover.step import ClipCall, Step
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Pending

Note = Callable[[str, str], None]

MOST = 1024
"""Clipping calls of one step that are told."""


class Clipping:
    """Puts what clips gradients into the open step. Training thread.

    `changes_unannounced` tells that this loop was seen to change gradients with code of its own,
    `bounds_values` that it clips values.
    """

    def __init__(
        self, parameters: Parameters, reader: GradientReader, ledger: Ledger, note: Note
    ) -> None:
        self._parameters = parameters
        self._reader = reader
        self._ledger = ledger
        self._note = note
        self.changes_unannounced = False
        self.bounds_values = False
        self._before_values: list[Tensor | None] | None = None
        self._clipped: set[int] = set()
        self._changed: set[int] = set()

    def nothing(self, step: Step) -> None:
        """A call was given no parameters, such as an iterator that was used up before."""
        step.remarks.add("no gradients")

    def begins(self, step: Step, positions: Sequence[int], *, first: bool) -> None:
        """A call on these parameters begins: notes what is odd about it, and what came before it.

        `first` for a run's first step. A few microseconds, as loops call it for each parameter.
        """
        any_, unused, touched = self._ledger.glance(positions)
        if not any_:
            step.remarks.add("no gradients")
            return
        if not (unused or first):
            step.remarks.add("after the step")
        if self._reader.is_scaled(positions):
            step.remarks.add("still scaled")
        if self._clipped and not self._clipped.isdisjoint(positions):
            step.remarks.add("twice")
        if not step.due.gradients:
            return
        if touched:
            self._ledger.known(touched)
            self._changed.update(touched)
        if self._changed:
            self.note_changes(step, positions)

    def has_clipped(self, positions: Iterable[int]) -> bool:
        """Whether all of these gradients have been clipped as they are."""
        return self._clipped.issuperset(positions)

    def unclipped(self, positions: Iterable[int]) -> None:
        """These gradients are others now, which nobody has clipped yet."""
        self._clipped.difference_update(positions)
        self._changed.difference_update(positions)

    def before(self, step: Step, positions: Sequence[int]) -> None:
        """A call is about to change these gradients, which have been read."""
        if step.due.updates:
            self._before_values = self._parameters.copy_gradients(positions)

    def after(self, step: Step, call: ClipCall) -> None:
        """The call returned."""
        if call.kind == "value":
            self.bounds_values = True
            if step.due.gradients:
                call.after, _ = self._reader.read_again(
                    call.positions, full=False, scale=step.scale
                )
            if self._before_values is not None:
                cosine = self._parameters.cosine(call.positions, self._before_values)
                call.cosine = None if cosine is None else Pending(cosine)
        self._before_values = None
        self._put(step, call)
        self._clipped.update(call.positions)
        self._ledger.known(call.positions)

    def _put(self, step: Step, call: ClipCall) -> None:
        if len(step.clips) < MOST:
            step.clips.append(call)
            return
        self._note(
            "clipping",
            f"gradients were clipped more than {MOST:,} times in one step: of such a step the "
            f"first {MOST:,} are told; where a step ended long before, call trace.step() there",
        )

    def changed(self, positions: Iterable[int]) -> None:
        """Somebody changed these gradients; whoever uses or clips them next will note it."""
        self._changed.update(positions)

    def note_changes(self, step: Step, positions: Sequence[int]) -> None:
        """Puts into the step what is known to have changed of the gradients at `positions`."""
        if self._changed.isdisjoint(positions):
            return
        # What other optimizers are to use of the same backward was changed along with it.
        positions = sorted({*positions, *self._ledger.together(positions)})
        touched = [i for i in positions if i in self._changed]
        self._changed.difference_update(touched)
        if self._reader.is_fresh(touched):
            # The step's table may be made of these.
            full = step.due.full
            after, present = self._reader.read_again(positions, full=full, scale=step.scale)
            self._put(step, ClipCall("custom", tuple(present), after=after, inferred=True))
        elif self._ledger.unused(touched):
            step.unread = True
            self._note(
                "clipping",
                "gradients were changed between backward and the optimizer step by code other "
                "than torch.nn.utils.clip_grad_*, before they were read: such a step has no "
                "gradient norms; from the next one on they are read right after each backward",
            )
        self.changes_unannounced = True
