"""The optimizers of a loop: whose parameters each one moves."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from torch.optim import Optimizer

from gradtrace.measure.parameters import Parameters


@dataclass(slots=True)
class _Owned:
    """Where an optimizer's parameters stood when they were last looked at; None for strangers."""

    places: list[int | None]
    positions: tuple[int, ...]


class Owners:
    """Remembers each optimizer's parameters; looks again when they are others. Training thread.

    The parameters themselves are compared, 0.1 us each, for a new one may stand in the group where
    the old one stood.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._owned: weakref.WeakKeyDictionary[Optimizer, _Owned] = weakref.WeakKeyDictionary()
        self._changes = 0
        self._nobodys: tuple[tuple[int, int, int], tuple[int, ...]] = ((-1, -1, -1), ())

    def positions_of(self, optimizer: Optimizer) -> tuple[int, ...]:
        """Where the watched parameters of this optimizer stand; empty for somebody else's."""
        given = [p for group in optimizer.param_groups for p in group["params"]]
        owned = self._owned.get(optimizer)
        if owned is None or not self._parameters.holds(given, owned.places):
            # The model may have grown, or been given new parameters, since it was last looked at.
            self._parameters.refresh()
            index = self._parameters.index
            places = [index.get(id(p)) for p in given]
            owned = _Owned(places, tuple([at for at in places if at is not None]))
            self._owned[optimizer] = owned
            self._changes += 1
        return owned.positions

    def nobodys(self) -> tuple[int, ...]:
        """Parameters that no optimizer seen so far holds: they may still get gradients."""
        key = (len(self._owned), len(self._parameters.tensors), self._changes)
        if key != self._nobodys[0]:
            owned: set[int] = set()
            for entry in self._owned.values():
                owned.update(entry.positions)
            rest = [i for i in range(len(self._parameters.tensors)) if i not in owned]
            self._nobodys = (key, tuple(rest))
        return self._nobodys[1]
