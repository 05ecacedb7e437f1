"""What random loops write down: for each parameter, which backwards its gradient is made of.

Plain Python and float64; nothing here knows gradtrace. Where two answers are right (the same batch
in two steps, a gradient used twice) both are written down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from zoo.truth import norm_of, total

Drawn = tuple[int, int, tuple[int, ...]]
"""Epoch, index in the epoch, sample ids."""


@dataclass(eq=False)
class Backward:
    """One backward: its loss, the batches it was computed from, and what became of it."""

    number: int
    loss: float
    divisor: float
    batches: tuple[Drawn, ...]
    """All of them."""
    fresh: tuple[Drawn, ...]
    """Those that no backward before it had."""
    used: bool = False
    lost: bool = False


@dataclass
class ClipCall:
    """A call on gradients that were there; `stale` once a backward has added to any of them, or
    where they had been used before.
    """

    kind: str
    names: frozenset[str]
    before: float
    after: float
    stale: bool = False


@dataclass
class Use:
    """A step of an optimizer, or a close by hand. Of `rows`, `again` were used before."""

    backwards: list[Backward]
    rows: dict[str, float]
    zeros: set[str]
    clips: list[ClipCall]
    again: set[str]
    lr: tuple[float, ...]
    delivered: tuple[Drawn, ...] = ()
    """All batches since the mark before, of a step that was closed by hand."""


class Account:
    """The oracle of one loop."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.backwards: list[Backward] = []
        self.uses: list[Use] = []
        self.discards: list[list[Backward]] = []
        self._holds: dict[str, list[Backward]] = {}
        self._rows: dict[str, float] = {}
        self._again: set[str] = set()
        self._clips: list[ClipCall] = []
        self._fresh: list[Drawn] = []
        self._since_mark: list[Drawn] = []
        self._unmarked = False

    def drawn(self, batch: Drawn) -> None:
        """The loop has this batch now, and computes with it."""
        self._fresh.append(batch)
        self._since_mark.append(batch)

    def passed_over(self) -> None:
        """What was drawn is not computed with after all."""
        self._fresh = []

    def backward(
        self, loss: float, divisor: float, names: Iterable[str], current: Sequence[Drawn]
    ) -> None:
        """A backward has ended, which wrote the gradients of these parameters."""
        fresh = tuple(batch for batch in self._fresh if batch in current)
        self._fresh = []
        made = Backward(len(self.backwards), loss, divisor, tuple(current), fresh)
        self.backwards.append(made)
        written = set(names)
        for name, parameter in self._model.named_parameters():
            if name in written and parameter.grad is not None:
                held = self._holds.setdefault(name, [])
                if held and all(one.used for one in held):
                    held.clear()
                held.append(made)
                self._rows[name] = norm_of(parameter.grad)
                self._again.discard(name)
        for call in self._clips:
            call.stale |= bool(call.names & written)

    def clipped(self, kind: str, before: dict[str, float]) -> None:
        """A clipping call returned; `before` are the norms that there were."""
        there = {name: p for name, p in self._model.named_parameters() if name in before}
        if any(before.values()):
            was = math.hypot(*before.values())
            late = bool(self._again & before.keys())
            after = total(there.values())
            self._clips.append(ClipCall(kind, frozenset(before), was, after, stale=late))

    def zeroed(self, names: Iterable[str]) -> None:
        """These gradients were zeroed or removed, or went with their parameters."""
        gone = set(names)
        lost: list[Backward] = []
        for name in gone:
            lost += [one for one in self._holds.pop(name, []) if one not in lost]
            self._rows.pop(name, None)
            self._again.discard(name)
        held = [one for some in self._holds.values() for one in some]
        found = [one for one in lost if not one.used and one not in held and not one.lost]
        for one in found:
            one.lost = True
        if found:
            self.discards.append(sorted(found, key=lambda one: one.number))
        for call in self._clips:
            call.names -= gone
        self._clips = [call for call in self._clips if call.names]

    def used(self, names: Iterable[str], lr: tuple[float, ...]) -> None:
        """The gradients of these parameters were used."""
        mine = set(names)
        rows = {name: norm for name, norm in self._rows.items() if name in mine}
        parts = {one.number: one for name in rows for one in self._holds[name] if not one.used}
        zeros = {
            name
            for name, p in self._model.named_parameters()
            if name in mine and p.grad is not None and name not in rows
        }
        clips = [call for call in self._clips if call.names & mine]
        use = Use([parts[k] for k in sorted(parts)], rows, zeros, clips, self._again & mine, lr)
        for one in use.backwards:
            one.used = True
        self.uses.append(use)
        self._unmarked = True
        self._again |= rows.keys()
        self._clips = [call for call in self._clips if not call.names & mine]

    def marked(self) -> None:
        """The loop closes a step by hand: if no optimizer has stepped, that is the use."""
        if not self._unmarked:
            self.used([name for name, _ in self._model.named_parameters()], ())
            self.uses[-1].delivered = tuple(self._since_mark)
        self._unmarked = False
        self._since_mark = []
