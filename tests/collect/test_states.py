"""Whether anything has happened to a gradient since the last look."""

from __future__ import annotations

import random
import weakref

import pytest
import torch
from torch import Tensor

from gradtrace.collect.states import ABSENT, Grad, States, all_absent


def some(count: int) -> list[Grad]:
    return [torch.ones(2) for _ in range(count)]


def test_in_the_beginning_there_is_nothing() -> None:
    """Room is made for gradients that are not there."""
    states = States()
    states.grow(2)
    states.grow(1)
    assert states.nothing and states.all_known([ABSENT] * 3) and all_absent([ABSENT] * 3)
    assert not states.all_known([ABSENT, torch.ones(1), ABSENT])
    assert not all_absent([ABSENT, torch.ones(1)])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_to_any_is_seen(seed: int) -> None:
    """Written to, replaced, removed or come: of exactly those, by one look and by single ones."""
    chance = random.Random(seed)
    grads: list[Grad] = some(6)
    states = States()
    states.grow(6)
    states.learn_all(grads)
    for _ in range(50):
        touched = set()
        for i in chance.sample(range(6), chance.randint(0, 3)):
            grad, what = grads[i], chance.randrange(3)
            if what == 0 and isinstance(grad, Tensor):
                grad.mul_(2)
            elif what == 1 and grad is not ABSENT:
                grads[i] = ABSENT
            else:
                grads[i] = torch.ones(2)
            touched.add(i)
        assert states.all_known(grads) == (not touched)
        assert {i for i in range(6) if not states.is_known(i, grads[i])} == touched
        for i in touched:
            same = states.is_same(i, grads[i])
            assert states.learn(i, grads[i]) == (not same)
        assert states.all_known(grads)
        assert states.nothing == all_absent(grads)


def test_what_was_announced_is_taken_as_known() -> None:
    """Versions only, and only where all are the tensors that were there."""
    states = States()
    states.grow(2)
    first, second = torch.ones(2), torch.ones(2)
    states.learn_all([first, second])
    first.mul_(2)
    assert states.learn_versions([first, second]) and states.all_known([first, second])
    other = torch.ones(2)
    assert not states.learn_versions([first, other])
    assert not states.is_known(1, other) and states.all_known([first, second])


def test_a_tensor_in_a_freed_ones_place_is_another() -> None:
    """Its number in memory and its version may be those of the one before."""
    states = States()
    states.grow(1)
    grads: list[Grad] = some(1)
    states.learn_all(grads)
    numbers = set()
    for _ in range(20):
        numbers.add(id(grads[0]))
        grads[0] = ABSENT
        grads[0] = torch.ones(2)
        assert not states.all_known(grads) and not states.is_known(0, grads[0])
        states.learn(0, grads[0])
    assert len(numbers) < 20, "no place was used again, so this has shown nothing"


@pytest.mark.parametrize("mixed", [False, True])
def test_nothing_is_kept_alive(mixed: bool) -> None:
    """Learned at once or one by one, gradients die with the loop's own reference."""
    states = States()
    grads: list[Grad] = [*some(2), *([ABSENT] if mixed else [])]
    states.grow(len(grads))
    states.learn_all(grads)
    states.learn(0, grads[0])
    refs = [weakref.ref(grad) for grad in grads[:2]]
    grads.clear()
    assert [ref() for ref in refs] == [None, None]
    states.forget_all()
    assert states.nothing
