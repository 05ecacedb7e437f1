"""What the loop has done, in numbers that no thread waits for."""

from __future__ import annotations

import torch
from torch import nn

from gradtrace.session.activity import MOST, Activity, Moves


def test_nothing_has_happened_at_first() -> None:
    """A new trace has seen nothing, and nothing is said to hold steps open."""
    assert Activity() == Activity(records=0, backwards=0, marks=0, step_after="", frozen=False)


def test_moves_are_seen_whoever_made_them() -> None:
    """An optimizer, a copy and an operation in place each count once a look; gradients do not."""
    model = nn.Linear(2, 2)
    parameters, moves = list(model.parameters()), Moves()
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    assert moves.look(parameters) == 0
    model(torch.ones(1, 2)).sum().backward()
    assert moves.look(parameters) == 0
    optimizer.step()
    assert moves.look(parameters) == 1
    with torch.no_grad():
        model.bias.copy_(torch.zeros(2))
        model.weight.mul_(0.5)
    assert moves.look(parameters) == 2
    assert moves.look(parameters) == 2


def test_replaced_parameters_are_a_move() -> None:
    """Others in their places count, and so do more of them."""
    moves = Moves()
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    with torch.no_grad():
        second.add_(1)
    moves.look([first])
    assert moves.look([second]) == 1
    assert moves.look([second, first]) == 2


def test_of_many_parameters_some_are_looked_at() -> None:
    """The cost of a look is bounded, and a move of all of them is seen all the same."""
    parameters: list[torch.Tensor] = [nn.Parameter(torch.zeros(1)) for _ in range(5 * MOST)]
    moves = Moves()
    moves.look(parameters)
    assert moves._versions is not None and MOST <= len(moves._versions) < 2 * MOST
    with torch.no_grad():
        torch._foreach_add_(parameters, 1.0)
    assert moves.look(parameters) == 1


def test_inference_tensors_have_no_versions() -> None:
    """They are passed over: they cannot be trained."""
    with torch.inference_mode():
        parameter = nn.Parameter(torch.zeros(1), requires_grad=False)
    moves = Moves()
    assert [moves.look([parameter]) for _ in range(2)] == [0, 0]
