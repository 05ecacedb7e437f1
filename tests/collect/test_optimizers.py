"""Whose parameters are whose, also when that changes; and which optimizers make one step."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from gradtrace import Sampling
from gradtrace.collect import optimizers
from gradtrace.collect.optimizers import Owners, Rounds
from gradtrace.measure.parameters import Parameters


def test_each_optimizer_has_its_own() -> None:
    """Positions follow the optimizers' groups; what none holds is told, and a stranger has none."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    parameters = Parameters({"": model}, Sampling())
    owners = Owners(parameters)
    assert owners.nobodys() == tuple(range(6))
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD(model[1].parameters(), lr=0.1)
    assert (owners.positions_of(first), owners.positions_of(second)) == ((0, 1), (2, 3))
    assert owners.nobodys() == (4, 5)
    assert owners.positions_of(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)) == ()
    first.add_param_group({"params": list(model[2].parameters())})
    assert owners.positions_of(first) == (0, 1, 4, 5)
    assert owners.nobodys() == ()


def test_a_model_that_grew_is_looked_at_again() -> None:
    """Parameters that are new to the model are found with the optimizer that brings them."""
    model = nn.Sequential(nn.Linear(2, 2))
    parameters = Parameters({"": model}, Sampling())
    owners = Owners(parameters)
    model.append(nn.Linear(2, 3))
    late = torch.optim.SGD(model[1].parameters(), lr=0.1)
    assert owners.positions_of(late) == (2, 3)
    assert parameters.names[2:] == ("1.weight", "1.bias")


def test_an_optimizer_that_is_gone_owns_nothing() -> None:
    """Its parameters are nobody's again."""
    model = nn.Linear(2, 2)
    owners = Owners(Parameters({"": model}, Sampling()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert owners.positions_of(optimizer) == (0, 1) and owners.nobodys() == ()
    del optimizer
    assert owners.nobodys() == (0, 1)


def some(count: int) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1) for _ in range(count)]


def refs(*given: torch.optim.Optimizer) -> list[Any]:
    return [weakref.ref(one) for one in given]


def test_a_round_is_complete_when_all_known_have_stepped() -> None:
    """Nothing is known before a round has ended; then all of its optimizers are waited for."""
    a, b, c = some(3)
    rounds = Rounds()
    assert not rounds.known and not rounds.complete(refs(a, b))
    rounds.closed(refs(a, b))
    assert rounds.known
    assert not rounds.complete(refs(a)) and not rounds.complete(refs(c))
    assert rounds.complete(refs(b, a)) and rounds.complete(refs(a, b, c))
    rounds.closed(refs(a, b, c))
    assert not rounds.complete(refs(a, b))


def test_who_has_stepped_is_told_by_identity() -> None:
    """A reference to an optimizer that is gone is nobody's."""
    a, b = some(2)
    stepped = refs(a)
    assert Rounds.has_stepped(a, stepped) and not Rounds.has_stepped(b, stepped)
    del a
    gc.collect()
    assert not Rounds.has_stepped(b, stepped)


def test_an_optimizer_that_is_gone_is_not_waited_for() -> None:
    """Optimizers are held weakly: one that was replaced ends with its last reference."""
    a, b = some(2)
    rounds = Rounds()
    rounds.closed(refs(a, b))
    del b
    gc.collect()
    assert rounds.complete(refs(a))


def test_one_that_stepped_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer that is kept and no longer used does not hold up steps for ever."""
    monkeypatch.setattr(optimizers, "_FORGET_AFTER", 5)
    a, b = some(2)
    rounds = Rounds()
    rounds.closed(refs(a, b))
    found = []
    for _ in range(12):
        found.append(rounds.complete(refs(a)))
        rounds.closed(refs(a))
    assert found == [False] * 9 + [True] * 3
