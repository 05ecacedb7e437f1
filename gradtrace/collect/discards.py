"""Backwards whose gradients were thrown away, until it shows what became of them."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from gradtrace.handover.step import Lost, Part
from gradtrace.measure.parameters import Parameters

MOST = 64
"""Of them that are remembered between two steps; more are counted only."""


class Settled(NamedTuple):
    """What a step is made of."""

    parts: list[Part]
    lost: list[Lost]
    """What was thrown away before it."""
    last: Lost | None
    """The newest of what was thrown away and yet used: what was measured of it is the step's."""


class Discards:
    """Decides, when the next step uses gradients, what the thrown-away ones were. Training thread.

    A loop that computes gradients and lets them go may have moved the parameters by them with code
    of its own (SAM) or put gradients of its own making in their place (gradient surgery): then they
    were used. It may have looked at them only (an attack, Fisher information): then they belong to
    no step. Or it has dropped a batch. A batch without a step of its own goes with the first of
    these cases; whoever uses it again has it.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._lost: list[Lost] = []
        self._watched: tuple[weakref.ref[Tensor], int] | None = None
        self.count = 0
        """How often gradients were thrown away, of one backward or summed from several."""
        self.lost = 0
        """The same, those included by which the loop had moved the parameters itself."""

    def backward(self, written: Sequence[int]) -> None:
        """A backward wrote these gradients: what moves from here on was moved by them."""
        if written:
            parameter = self._parameters.tensors[written[0]]
            self._watched = (weakref.ref(parameter), parameter._version)

    def _moved(self) -> bool:
        if self._watched is None:
            return False
        parameter = self._watched[0]()
        return parameter is not None and parameter._version != self._watched[1]

    def add(self, parts: list[Part], measured: Lost | None) -> None:
        """No gradient of these backwards is left, and no optimizer has used one."""
        lost = Lost([]) if measured is None else measured
        lost.parts = parts
        lost.ended = time.time()
        self.lost += 1
        if self._moved():
            lost.by_hand = True
        else:
            self.count += 1
        if len(self._lost) < MOST:
            self._lost.append(lost)

    @property
    def many(self) -> bool:
        """Whether more was thrown away since the last step than is remembered."""
        return len(self._lost) >= MOST

    def settle(self, parts: list[Part], *, made: bool) -> Settled:
        """What a step that used the gradients of `parts` is made of.

        `made` tells that gradients of the loop's own making were among them.
        """
        lost, self._lost = self._lost, []
        if any(part.batches for part in parts):
            pass
        elif made:
            found = [part for one in lost for part in one.parts]
            for part in found:
                part.used = True
            self.count -= sum(not one.by_hand for one in lost)
            return Settled(found + parts, [], lost[-1] if lost else None)
        elif parts:
            # The batch was used again, by this step.
            for one in reversed(lost):
                batches = tuple([b for part in one.parts for b in part.batches])
                if batches:
                    parts[0].batches = batches
                    for part in one.parts:
                        part.batches = ()
                    break
        return Settled(parts, [one for one in lost if not one.by_hand], None)

    def rest(self) -> list[Lost]:
        """What was thrown away and no step has followed; at the end of a run."""
        lost, self._lost = self._lost, []
        return [one for one in lost if not one.by_hand]
