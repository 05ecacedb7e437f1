"""Where one step ends and the next begins, when a loop has any number of optimizers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from gradtrace.handover.step import Step
from gradtrace.sampling import Due

# An optimizer that has not stepped for so many rounds is no longer waited for.
_FORGET_AFTER = 1000


@dataclass(slots=True)
class Piece:
    """What one use of gradients has made; one or several of them are a step."""

    step: Step
    own: Due
    """What is due in it if it is a step of its own."""

    def has(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer has stepped in it."""
        return any(ref() is optimizer for ref in self.step.stepped)


class Rounds:
    """Joins pieces to steps. Holds optimizers weakly.

    Optimizers that use the gradients of one backward are one piece from the start. Pieces of
    different backwards are held open until it shows whether they make a round, in which every
    optimizer steps once (a GAN), or are phases, in which one steps several times (PPO): an
    optimizer that steps again while others have stepped since begins the next round; one that steps
    twice in a row shows that the pieces before it were steps of their own; at the end of a run that
    has shown neither they are a round. `step_after`, if given, decides alone: a step ends when that
    optimizer has stepped.
    """

    def __init__(self, step_after: Optimizer | None = None) -> None:
        self._after = None if step_after is None else weakref.ref(step_after)
        self._seen: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._round = 0
        # Whether optimizers make rounds together or phases one by one; None until that was seen.
        self._together: bool | None = None

    def over(self, optimizer: Optimizer, pieces: Sequence[Piece], positions: Sequence[int]) -> bool:
        """Whether the round of these pieces is over, now that this optimizer is about to step.

        It is, too, when all of the optimizer's parameters, at `positions`, have been moved by
        another one: the two take turns, or one has come in the other's place.
        """
        return self._after is None and any(
            piece.has(optimizer) or piece.step.used.issuperset(positions) for piece in pieces
        )

    def complete(self, pieces: Sequence[Piece], moved_all: Callable[[], bool]) -> bool:
        """Whether nothing more is expected to join these pieces."""
        if self._after is not None:
            last = self._after()
            return last is None or pieces[-1].has(last)  # it has ended all steps before
        if not self._seen:
            return len(pieces) == 1 and moved_all()
        if self._together is False:
            return True
        if self._together is None and len(pieces) > 1:
            return False
        if not self._seen:
            return moved_all()
        return all(any(piece.has(one) for piece in pieces) for one in list(self._seen))

    def steps(
        self, pieces: Sequence[Piece], trigger: Optimizer | None, *, whole: bool = False
    ) -> list[Step]:
        """The steps that these pieces are; `trigger` is what ended the round by stepping again.

        `whole` tells that they are one step for certain.
        """
        if not pieces:
            return []
        self._learn(pieces)
        if self._after is None and trigger is not None and len(pieces) > 1:
            self._together = not pieces[-1].has(trigger)
        phases = self._after is None and not whole and self._together is False
        if phases and len(pieces) > 1:
            for piece in pieces:
                piece.step.narrow(piece.own)
            return [piece.step for piece in pieces]
        for k, piece in enumerate(pieces):
            # A backward may have written gradients that are another piece's to use, and was read
            # there; what a piece has used itself it keeps.
            before = (one.step.used for one in pieces[:k])
            after = (one.step.used & one.step.measured for one in pieces[k + 1 :])
            piece.step.forget(set().union(*before, *after))
        first = pieces[0].step
        first.narrow(pieces[0].own)
        for piece in pieces[1:]:
            first.absorb(piece.step)
        return [first]

    def _learn(self, pieces: Sequence[Piece]) -> None:
        self._round += 1
        for piece in pieces:
            for ref in piece.step.stepped:
                optimizer = ref()
                if optimizer is not None:
                    self._seen[optimizer] = self._round
        if self._round % _FORGET_AFTER == 0:
            for optimizer, last in list(self._seen.items()):
                if last <= self._round - _FORGET_AFTER:
                    del self._seen[optimizer]
