"""What became of gradients that were thrown away shows when the next step uses some."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradtrace.collect.discards import MOST, Discards
from gradtrace.handover.step import Batch, Part
from gradtrace.measure.parameters import Parameters
from gradtrace.sampling import Sampling


def new() -> tuple[Discards, nn.Linear]:
    model = nn.Linear(2, 1)
    return Discards(Parameters({"": model}, Sampling())), model


def part(number: int, *ordinals: int) -> Part:
    return Part(number, None, batches=tuple(Batch(0, k, k) for k in ordinals))


def test_a_dropped_batch_is_no_steps() -> None:
    """The step that follows has its own, and what was lost stands beside it."""
    discards, _ = new()
    lost, own = part(0, 0), part(1, 1)
    discards.backward([0])
    discards.add([lost], None)
    parts, found = discards.settle([own], hand_made=False)
    assert parts == [own] and [one.parts for one in found] == [[lost]]
    assert discards.count == 1 and own.batches[0].ordinal == 1
    assert discards.settle([own], hand_made=False) == ([own], [])


def test_a_batch_that_is_used_again_goes_with_who_uses_it() -> None:
    """The last one that was lost: its loss stays away, as of gradients that were looked at."""
    discards, _ = new()
    lost, own = part(0, 0), part(1)
    discards.add([lost], None)
    parts, _ = discards.settle([own], hand_made=False)
    assert [batch.ordinal for batch in parts[0].batches] == [0] and lost.batches == ()


def test_gradients_that_moved_parameters_were_not_lost() -> None:
    """Code of the loop's own moved them, as the first half of SAM does."""
    discards, model = new()
    discards.backward([0])
    with torch.no_grad():
        model.weight.add_(1.0)
    discards.add([part(0, 0)], None)
    assert discards.count == 0
    assert discards.settle([part(1, 1)], hand_made=False)[1] == []


def test_gradients_of_the_loops_own_making_are_made_of_what_was_lost() -> None:
    """No backward wrote what is used: it was made of those that were thrown away."""
    discards, _ = new()
    lost = [part(0, 0), part(1, 1)]
    for one in lost:
        discards.add([one], None)
    assert discards.count == 2
    assert discards.settle([], hand_made=True) == (lost, [])
    assert discards.count == 0 and all(one.used for one in lost)


@pytest.mark.parametrize("count", [MOST - 1, MOST, MOST + 5])
def test_no_more_than_so_many_are_remembered(count: int) -> None:
    """All are counted."""
    discards, _ = new()
    for k in range(count):
        discards.add([part(k, k)], None)
    assert discards.many == (count >= MOST) and discards.count == count
    assert len(discards.settle([part(count, count)], hand_made=False)[1]) == min(count, MOST)
