"""The optimizers of a loop: whose parameters each one moves, and which of them make one step."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from gradtrace.measure.parameters import Parameters

# An optimizer that has not stepped for so many rounds is no longer waited for.
_FORGET_AFTER = 1000


@dataclass(slots=True)
class _Owned:
    """The watched parameters of an optimizer, and how its groups looked when that was found out."""

    groups: tuple[int, ...]
    positions: tuple[int, ...]


class Owners:
    """Remembers each optimizer's parameters; looks again when its groups change. One thread."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._owned: weakref.WeakKeyDictionary[Optimizer, _Owned] = weakref.WeakKeyDictionary()
        self._changes = 0
        self._nobodys: tuple[tuple[int, int, int], tuple[int, ...]] = ((-1, -1, -1), ())

    def positions_of(self, optimizer: Optimizer) -> tuple[int, ...]:
        """Where the watched parameters of this optimizer stand; empty for somebody else's."""
        groups = tuple([len(group["params"]) for group in optimizer.param_groups])
        owned = self._owned.get(optimizer)
        if owned is None or owned.groups != groups:
            # The model may have grown, or been given new parameters, since it was last looked at.
            self._parameters.refresh()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            owned = _Owned(groups, self._parameters.positions(parameters))
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


class Rounds:
    """Decides when a step closes: when an optimizer that has stepped in it steps again.

    Once every optimizer of the loop is known the step closes with the last of them, without
    waiting for the next round. Holds optimizers weakly.
    """

    def __init__(self) -> None:
        self._seen: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._round = 0

    @property
    def known(self) -> bool:
        """Whether a round has been seen to its end."""
        return bool(self._seen)

    def complete(self, stepped: list[Any]) -> bool:
        """Whether every known optimizer is among the weak references `stepped`."""
        if not self._seen:
            return False
        have = {id(ref()) for ref in stepped}
        return all(id(optimizer) in have for optimizer in self._seen)

    def closed(self, stepped: list[Any]) -> None:
        """Learns which optimizers took part in a round."""
        self._round += 1
        for ref in stepped:
            optimizer = ref()
            if optimizer is not None:
                self._seen[optimizer] = self._round
        if self._round % _FORGET_AFTER == 0:
            for optimizer, last in list(self._seen.items()):
                if last <= self._round - _FORGET_AFTER:
                    del self._seen[optimizer]

    @staticmethod
    def has_stepped(optimizer: Optimizer, stepped: list[Any]) -> bool:
        """Whether this optimizer is among the weak references `stepped`."""
        return any(ref() is optimizer for ref in stepped)
