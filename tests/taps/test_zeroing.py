"""A `zero_grad` is told once it has returned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from gradtrace.taps.patches import Target, registry
from gradtrace.taps.zeroing import zero_targets


class Heard:
    """Writes down whether the gradient was gone when it was told."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.gone: list[bool] = []

    def zeroed(self) -> None:
        self.gone.append(self.parameter.grad is None)


@pytest.fixture
def watched() -> Iterator[tuple[nn.Linear, Heard]]:
    model = nn.Linear(2, 1)
    heard = Heard(model.weight)
    with ExitStack() as stack:
        for _, target in zero_targets():
            assert isinstance(target, Target)
            stack.callback(registry.attach(target, heard))
        yield model, heard


def test_both_methods_are_told_after_they_returned(watched: tuple[nn.Linear, Heard]) -> None:
    """That of an optimizer, and that of a module."""
    model, heard = watched
    for owner in (model, torch.optim.SGD(model.parameters(), lr=0.1)):
        model(torch.ones(1, 2)).sum().backward()
        owner.zero_grad()
    assert heard.gone == [True, True]


def test_arguments_pass_through(watched: tuple[nn.Linear, Heard]) -> None:
    """Gradients that shall stay tensors are zeros."""
    model, heard = watched
    model(torch.ones(1, 2)).sum().backward()
    model.zero_grad(set_to_none=False)
    assert model.weight.grad is not None and not model.weight.grad.any()
    assert heard.gone == [False]


def test_a_torch_that_differs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error stands in place of what is missing; the other is still found."""
    monkeypatch.delattr(nn.Module, "zero_grad")
    found = dict(zero_targets())
    assert isinstance(found["Module.zero_grad"], AttributeError)
    assert isinstance(found["Optimizer.zero_grad"], Target)
