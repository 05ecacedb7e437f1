"""Which uses of gradients are one step: rounds, phases, and what the user says."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch.optim import Optimizer

from gradtrace.collect import rounds as module
from gradtrace.collect.rounds import Piece, Rounds
from gradtrace.handover.step import Step
from gradtrace.sampling import Sampling

DUE = Sampling().due(0)


def some(count: int) -> list[Optimizer]:
    return [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1) for _ in range(count)]


class Loop:
    """Rounds, told of optimizers as the collector does; `steps` names who stepped in each."""

    def __init__(self, everyone: Sequence[Optimizer], step_after: Optimizer | None = None) -> None:
        self.names = {id(one): name for name, one in zip("abcdef", everyone, strict=False)}
        self.everyone = everyone
        self.rounds = Rounds(step_after)
        self.pieces: list[Piece] = []
        self.steps: list[str] = []

    def use(self, *optimizers: Optimizer) -> None:
        """One or several use the gradients of one backward."""
        if any(self.rounds.over(one, self.pieces, [0]) for one in optimizers):
            self.close(optimizers[0])
        step = Step(DUE)
        step.stepped = [weakref.ref(optimizer) for optimizer in optimizers]
        self.pieces.append(Piece(step, DUE))
        if self.rounds.complete(self.pieces, self.moved_all):
            self.close(None)

    def moved_all(self) -> bool:
        return all(any(piece.has(one) for piece in self.pieces) for one in self.everyone)

    def close(self, trigger: Optimizer | None) -> None:
        for step in self.rounds.steps(self.pieces, trigger):
            alive = [one() for one in step.stepped]
            self.steps.append("".join(self.names[id(one)] for one in alive if one is not None))
        self.pieces = []


def told(pattern: str, *, after: str = "", known: str = "") -> list[str]:
    """The steps of a loop in which optimizers use gradients in this order.

    Letters in brackets use those of one backward; `known` are all that hold parameters.
    """
    names = sorted(set(known or pattern) - set("() "))
    optimizers = dict(zip(names, some(len(names)), strict=True))
    loop = Loop(list(optimizers.values()), optimizers.get(after))
    loop.names = {id(one): name for name, one in optimizers.items()}
    together: list[Optimizer] | None = None
    for letter in pattern.replace(" ", ""):
        if letter == "(":
            together = []
        elif letter == ")":
            assert together is not None
            loop.use(*together)
            together = None
        elif together is not None:
            together.append(optimizers[letter])
        else:
            loop.use(optimizers[letter])
    loop.close(None)
    return loop.steps


CASES = {
    "one optimizer": ("aaa", ["a", "a", "a"]),
    "two on one backward": ("(ab)(ab)(ab)", ["ab", "ab", "ab"]),
    "a GAN": ("ababab", ["ab", "ab", "ab"]),
    "a GAN that ends within a round": ("ababa", ["ab", "ab", "a"]),
    "three in turn": ("abcabcabc", ["abc", "abc", "abc"]),
    "critic steps between": ("aab aab aab", ["a", "a", "b", "a", "a", "b", "a", "a", "b"]),
    "policy, then value": ("aaabbb aaabbb", [*"aaabbb", *"aaabbb"]),
    "one, then several": ("abbb abbb", [*"abbb", *"abbb"]),
    "a pair in turn with a third": ("(ab)c (ab)c", ["abc", "abc"]),
    "a single round": ("ab", ["ab"]),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_what_loops_mean_by_them(case: str) -> None:
    """Rounds in which each steps once are joined, phases of one that repeats are not."""
    pattern, expected = CASES[case]
    assert told(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "after", "expected"),
    [
        ("aab aab", "b", ["aab", "aab"]),
        ("abab", "a", ["a", "ba", "b"]),
        ("aaaa", "b", ["aaaa"]),
        ("(ab)(ab)a", "b", ["ab", "ab", "a"]),
    ],
)
def test_what_the_user_says_decides(pattern: str, after: str, expected: list[str]) -> None:
    """With `step_after` a step ends with that optimizer, and never otherwise."""
    assert told(pattern, after=after, known="ab") == expected


@pytest.mark.parametrize("seed", range(20))
def test_what_is_learned_is_kept(seed: int) -> None:
    """After a first round of any length, every whole round is one step, at once."""
    chance = random.Random(seed)
    optimizers = some(chance.randint(2, 5))
    loop = Loop(optimizers)
    order = list(optimizers)
    for k in range(6):
        last = order[-1]
        chance.shuffle(order)
        while k == 1 and order[0] is last:  # one that steps twice in a row shows phases
            chance.shuffle(order)
        for one in order:
            loop.use(one)
        assert len(loop.steps) == (k if k < 1 else k + 1)
        assert bool(loop.pieces) == (k < 1)


def test_an_optimizer_that_is_gone_is_not_waited_for() -> None:
    """Optimizers are held weakly: one that was replaced ends with its last reference."""
    optimizers = some(2)
    loop = Loop(optimizers)
    for one in optimizers * 2:
        loop.use(one)
    loop.use(optimizers[0])
    assert loop.pieces
    first = optimizers[0]
    del one, optimizers[1:], loop.everyone
    loop.everyone = optimizers
    loop.pieces = []
    gc.collect()
    loop.use(first)
    assert not loop.pieces


def test_one_that_stepped_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer that is kept and no longer used does not hold up steps for ever."""
    monkeypatch.setattr(module, "_FORGET_AFTER", 5)
    a, b = some(2)
    loop = Loop([a, b])
    for _ in range(3):
        loop.use(a)
        loop.use(b)
    waited = []
    for _ in range(12):
        loop.use(a)
        waited.append(bool(loop.pieces))
    assert waited[:2] == [True, True] and waited[-3:] == [False] * 3


def test_a_piece_knows_who_stepped_in_it() -> None:
    """By identity; a reference to an optimizer that is gone is nobody's."""
    a, b = some(2)
    piece = Piece(Step(DUE, stepped=[weakref.ref(a)]), DUE)
    assert piece.has(a) and not piece.has(b)
    del a
    gc.collect()
    assert not piece.has(b)


def test_who_moves_the_same_parameters_is_of_another_step() -> None:
    """An optimizer whose parameters another one has just moved begins a step; one that has more of
    its own may be of the same round.
    """
    first, second = some(2)
    piece = Piece(Step(DUE, used={0, 1}), DUE)
    piece.step.stepped = [weakref.ref(first)]
    rounds = Rounds()
    assert rounds.over(second, [piece], [0, 1]) and not rounds.over(second, [piece], [1, 2])
    assert not Rounds(first).over(second, [piece], [0, 1])
