"""Uses of gradients are put together to steps."""

from __future__ import annotations

import weakref

import torch
from torch import nn

from gradtrace.collect.rounds import Piece, Rounds
from gradtrace.handover.step import Step
from gradtrace.sampling import Sampling

DUE = Sampling().due(0)


class Loop:
    """Optimizers by letter that step one after the other; which of them made each step."""

    def __init__(self, *, border: str | None = None) -> None:
        self.optimizers = {
            name: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1) for name in "abc"
        }
        self.rounds = Rounds(None if border is None else self.optimizers[border])
        self.pieces: list[Piece] = []
        self.steps: list[str] = []

    def run(self, order: str) -> list[str]:
        for name in order:
            optimizer = self.optimizers[name]
            if self.rounds.over(optimizer, self.pieces):
                self._close(optimizer)
            self.pieces.append(Piece(Step(DUE, stepped=[weakref.ref(optimizer)]), DUE))
            if self.rounds.complete(self.pieces, lambda: False):
                self._close(None)
        self._close(None)
        return self.steps

    def _close(self, trigger: torch.optim.Optimizer | None) -> None:
        pieces, self.pieces = self.pieces, []
        names = {id(optimizer): name for name, optimizer in self.optimizers.items()}
        for step in self.rounds.steps(pieces, trigger):
            self.steps.append("".join(names[id(ref())] for ref in step.stepped))


def test_one_optimizer_ends_each_step() -> None:
    """Nothing else is waited for."""
    assert Loop().run("aaa") == ["a", "a", "a"]


def test_optimizers_in_turn_are_rounds() -> None:
    """From the first on: one that steps again while others have stepped begins the next."""
    assert Loop().run("ababab") == ["ab", "ab", "ab"]
    assert Loop().run("abcabc") == ["abc", "abc"]


def test_optimizers_in_phases_step_alone() -> None:
    """Stepping several times in a row shows it."""
    assert Loop().run("aaabbbaab") == ["a", "a", "a", "b", "b", "b", "a", "a", "b"]


def test_a_border_that_was_given_decides() -> None:
    """A step ends when that optimizer has stepped, whatever the others do."""
    assert Loop(border="b").run("aababaab") == ["aab", "ab", "aab"]


def test_optimizers_are_held_weakly() -> None:
    """One that is gone is not waited for."""
    loop = Loop()
    loop.run("abab")
    ref = weakref.ref(loop.optimizers.pop("b"))
    assert ref() is None
    loop.steps.clear()
    assert loop.run("aa") == ["a", "a"]
