"""What only the end of a step tells."""

from __future__ import annotations

import pytest
import torch
from driven import Driven
from torch import Tensor, nn

from gradtrace.handover.step import Step


def loss_of(module: nn.Module) -> Tensor:
    return torch.stack([p.square().sum() for p in module.parameters()]).sum()


def steps(driven: Driven) -> list[Step]:
    return [item for item in driven.taken() if isinstance(item, Step)]


def train(driven: Driven, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    driven.batch(1, 2)
    driven.backward(loss_of(model))
    driven.step(optimizer)
    model.zero_grad()


def test_steps_are_numbered_and_know_their_rank_and_names() -> None:
    """From zero on, in order; with the time they ended."""
    model = nn.Linear(3, 2)
    driven = Driven(model)
    for _ in range(3):
        train(driven, model, torch.optim.SGD(model.parameters(), lr=0.1))
    found = steps(driven)
    assert [step.number for step in found] == [0, 1, 2] and {step.rank for step in found} == {3}
    assert all(step.names == ("weight", "bias") and step.ended > 0 for step in found)
    assert [len(step.batches) for step in found] == [1, 1, 1]


def test_what_a_step_cost_is_what_was_spent_since_the_last() -> None:
    """The difference of a clock that only ever grows."""
    spent = iter([1.0, 3.5, 4.0])
    model = nn.Linear(3, 2)
    driven = Driven(model, overhead=lambda: next(spent))
    for _ in range(2):
        train(driven, model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [step.overhead for step in steps(driven)] == [2.5, 0.5]


def test_rows_are_of_what_is_trained() -> None:
    """Frozen layers have none, and have one again when they are trained."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driven = Driven(model)
    for frozen in (False, True, True, False):
        model[0].requires_grad_(not frozen)
        driven.batch(1)
        driven.backward(loss_of(model[1] if frozen else model))
        driven.step(optimizer)
        optimizer.zero_grad()
    shown = [step.shown.tolist() for step in steps(driven)]
    assert shown == [[0, 1, 2, 3], [2, 3], [2, 3], [0, 1, 2, 3]]


def test_gradients_that_are_another_optimizers_are_not_the_steps() -> None:
    """A backward may write more than the step uses: the rest has no numbers in it."""
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    first, second = (torch.optim.SGD(half.parameters(), lr=0.1) for half in model)
    driven = Driven(model)
    for optimizer, half in ((first, model[0]), (first, model[0]), (second, model[1])) * 2:
        driven.backward(loss_of(model))
        driven.clip_norm(1e6)
        norms = [float(p.grad.norm()) for p in half.parameters() if p.grad is not None]
        driven.step(optimizer)
        model.zero_grad()
    driven.collector.finish()
    last = driven.records()[-1]
    assert last.grad_norm == pytest.approx(float(torch.tensor(norms).norm()), rel=1e-5)


def test_nothing_can_be_read_on_the_meta_device() -> None:
    """Steps are counted all the same."""
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    driven = Driven(model)
    driven.collector.mark()
    driven.backward(loss_of(model))
    driven.step(torch.optim.SGD(model.parameters(), lr=0.1))
    driven.collector.mark()
    assert [step.readable for step in steps(driven)] == [False]
