"""Where steps begin and end, and what the pieces of a step measure."""

from __future__ import annotations

import torch
from driven import Driven
from torch import Tensor, nn

from gradtrace.sampling import Due, Sampling


def two() -> tuple[nn.ModuleList, list[torch.optim.SGD]]:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    return model, [torch.optim.SGD(half.parameters(), lr=0.1) for half in model]


def loss_of(module: nn.Module) -> Tensor:
    return torch.stack([p.square().sum() for p in module.parameters()]).sum()


def test_who_measures_outputs_is_told_of_each_piece() -> None:
    """Of the present one when it begins to listen, and of what each later one is to measure."""
    model, [optimizer, _] = two()
    driven = Driven(model[0], Sampling(activations=2, first=0))
    told: list[Due] = []
    driven.collector.borders.on_open(told.append)
    for _ in range(3):
        driven.backward(loss_of(model[0]))
        driven.step(optimizer)
    assert [due.activations for due in told] == [True, False, True, False]


def test_optimizers_of_one_backward_share_a_piece() -> None:
    """However many there are, one step has the backward, once."""
    model, optimizers = two()
    driven = Driven(model)
    for _ in range(3):
        driven.backward(loss_of(model))
        for optimizer in optimizers:
            driven.step(optimizer)
        model.zero_grad()
    assert driven.collector.borders.pieces == []
    assert [(len(r.losses), len(r.lr)) for r in driven.records()] == [(1, 2)] * 3


def test_a_piece_that_may_be_of_the_step_is_waited_for() -> None:
    """Two optimizers in turn: after the first of them the step is not over."""
    model, optimizers = two()
    driven = Driven(model)
    for _ in range(2):
        for at, (half, optimizer) in enumerate(zip(model, optimizers, strict=True)):
            driven.backward(loss_of(half))
            driven.step(optimizer)
            model.zero_grad()
            if at == 0:
                assert len(driven.collector.borders.pieces) == 1
                assert driven.collector.borders.before is not None
    driven.collector.finish()
    assert [(len(r.losses), len(r.lr)) for r in driven.records()] == [(2, 2)] * 2


def test_measuring_may_begin_anew() -> None:
    """What was summed up of a forward that came to nothing is gone."""
    model, [optimizer, _] = two()
    driven = Driven(model[0])
    driven.collector.outputs.module_names.append("0")
    driven.collector.outputs.activations.add(0, torch.full((3,), 7.0))
    driven.collector.borders.measure_anew()
    driven.collector.outputs.activations.add(0, torch.full((3,), 2.0))
    driven.backward(loss_of(model[0]))
    driven.step(optimizer)
    [record] = driven.records()
    assert record.activations is not None and record.activations["0", "max_abs"] == 2.0
