"""What becomes of gradients, and that ledger, readings and clips agree about it."""

from __future__ import annotations

import math

import pytest
import torch
from driven import Driven
from torch import Tensor, nn

from gradtrace.sampling import Sampling

LATER = Sampling(first=0, activations=0, updates=0)
"""Gradients only, and no first steps of another kind."""


def loss_of(module: nn.Module, size: float = 1.0) -> Tensor:
    return torch.stack([p.square().sum() for p in module.parameters()]).sum() * size


def norm(model: nn.Module) -> float:
    return math.hypot(*[float(p.grad.norm()) for p in model.parameters() if p.grad is not None])


class Loop:
    def __init__(self, sampling: Sampling = LATER) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.driven = Driven(self.model, sampling)
        self.norms: list[float] = []

    def step(self, backwards: int, *, scale: float = 1.0) -> None:
        for _ in range(backwards):
            self.driven.backward(loss_of(self.model))
        self.norms.append(norm(self.model) * (scale if scale > 1 else 1.0))
        with torch.no_grad():
            for p in self.model.parameters() if scale != 1.0 else ():
                assert p.grad is not None
                p.grad *= scale
        self.driven.step(self.optimizer)
        self.driven.zero(self.optimizer)


@pytest.mark.parametrize("usual", [1, 2, 3])
def test_gradients_are_read_after_the_backward_that_a_step_follows(usual: int) -> None:
    """So what the loop's code does to them later is known; it needs no backward twice."""
    loop = Loop()
    for _ in range(4):
        loop.step(usual)
    reader = loop.driven.collector._reader
    for count in range(1, usual + 1):
        loop.driven.backward(loss_of(loop.model))
        assert reader.is_fresh([0, 1]) == (count == usual)
    loop.step(0)
    records = loop.driven.records()
    assert [r.grad_norm for r in records] == pytest.approx(loop.norms, rel=1e-5)


def test_what_was_read_before_it_was_thrown_away_is_not_the_next_steps() -> None:
    """A backward too many, all zeroed: the step after it has its own numbers."""
    loop = Loop()
    loop.step(1)
    loop.driven.backward(loss_of(loop.model, 1000.0))
    loop.driven.clip_norm(0.1)
    loop.driven.zero(loop.optimizer)
    loop.step(1)
    first, second = loop.driven.records()
    assert second.grad_norm == pytest.approx(first.grad_norm) and second.clip is None
    [lost] = second.discarded
    assert lost.norm == pytest.approx(1000 * loop.norms[0], rel=1e-5)
    assert loop.driven.collector.discarded == 1


def test_what_only_some_of_the_gradients_lost_is_read_again() -> None:
    """One layer's gradient is thrown away: the step has the other's, and no loss is lost."""
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driven = Driven(model, LATER)
    driven.backward(loss_of(model))
    driven.clip_norm(1e6)
    for parameter in model[0].parameters():
        parameter.grad = None
    expected = norm(model[1])
    driven.step(optimizer)
    [record] = driven.records()
    assert record.grad_norm == pytest.approx(expected, rel=1e-5)
    assert len(record.losses) == 1 and record.discarded == ()


def test_an_evaluation_of_a_closure_that_came_to_nothing_keeps_its_batch() -> None:
    """The optimizer evaluates the same batch again, and moves by the last evaluation."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driven = Driven(model)
    driven.batch(5)
    driven.collector.before_step(optimizer, closure=True, in_backward=False)
    losses = []
    for size in (3.0, 2.0, 1.0):
        driven.zero(optimizer)
        loss = loss_of(model, size)
        losses.append(float(loss.detach()))
        driven.backward(loss)
    optimizer.step()
    driven.collector.after_step(optimizer, closure=True, in_backward=False)
    [record] = driven.records()
    assert record.losses == pytest.approx((losses[-1],))
    assert [batch.sample_ids for batch in record.batches] == [(5,)]
    assert driven.collector.discarded == 0
