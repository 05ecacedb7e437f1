"""Whose parameters are whose, also when that changes."""

from __future__ import annotations

import torch
from torch import nn

from gradtrace import Sampling
from gradtrace.collect.optimizers import Owners
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
