"""The losses of backwards, as far as what they started from shows them."""

from __future__ import annotations

from torch import Tensor

from gradtrace.collect.ledger import MOST
from gradtrace.collect.measuring import Note
from gradtrace.handover.step import Part
from gradtrace.measure.reading import Pending


class Losses:
    """Numbers backwards, and says why a loss is not known. Training thread.

    `divisor` is what the losses that follow were divided by before their backward.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._count = 0
        # A backward reached other parameters only, and no optimizer has used that yet.
        self._strange = False
        self.divisor = 1.0

    def part(self, loss: Tensor | None) -> Part:
        """What a backward from this loss is to a step; `counted` if it is one of ours."""
        if self._strange and loss is not None:
            loss = None
            self._note(
                "loss",
                "a backward that reached no parameter of this model ran before one that did, and "
                "nothing has used it yet: which of them started from the loss cannot be told, so "
                "such steps have none; say what it is with trace.log(loss=...)",
            )
        known = None if loss is None else Pending(loss)
        return Part(self._count, known, divisor=self.divisor)

    def counted(self) -> None:
        """The part that was made last is of this model."""
        self._count += 1

    def strange(self) -> None:
        """A backward has reached other parameters only: ours may start from its gradients."""
        self._strange = True

    def used(self) -> None:
        """An optimizer has stepped: what such a backward was for is over."""
        self._strange = False

    def none(self) -> None:
        """A step has used gradients that no backward has written."""
        self._note(
            "loss",
            "gradients were used that no backward has written since they were used last: "
            "such steps have no loss; say what it is with trace.log(loss=...)",
        )

    def too_many(self) -> None:
        """A sum is of more backwards than are remembered."""
        self._note(
            "losses",
            f"more than {MOST:,} backwards were added up and no optimizer of these parameters "
            "has stepped: only the newest are remembered; call trace.step() where a step ends",
        )
