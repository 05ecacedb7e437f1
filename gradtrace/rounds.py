"""Where one step ends and the next begins, when a loop has any number of optimizers."""

from __future__ import annotations

import weakref
from typing import Any

from torch.optim import Optimizer

# An optimizer that has not stepped for so many rounds is no longer waited for.
_FORGET_AFTER = 1000


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
