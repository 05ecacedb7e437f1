"""Each `zero_grad` is told, with its owner, once the gradients are gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from gradtrace.taps.patches import Target, registry
from gradtrace.taps.zeroing import zero_targets


class Watching:
    """Remembers whose gradients were zeroed, and what was left of one of them."""

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        self.told: list[tuple[Any, Any]] = []

    def zeroed(self, owner: Any) -> None:
        grad = self.model.weight.grad
        self.told.append((owner, None if grad is None else float(grad)))

    def backward(self) -> None:
        self.model(torch.ones(1, 1)).sum().backward()


def targets() -> list[Target]:
    return [target for _, target in zero_targets() if isinstance(target, Target)]


@pytest.fixture
def watching() -> Iterator[Watching]:
    observer = Watching()
    ends = [registry.attach(target, observer) for target in targets()]
    yield observer
    for end in ends:
        end()


def test_both_owners_are_told(watching: Watching) -> None:
    """Of an optimizer and of a module, to None and to zero, after it was done."""
    optimizer = torch.optim.SGD(watching.model.parameters(), lr=0.1)
    for owner in (optimizer, watching.model):
        watching.backward()
        owner.zero_grad()
        watching.backward()
        owner.zero_grad(False)
    assert watching.told == [
        *((optimizer, None), (optimizer, 0.0)),
        *((watching.model, None), (watching.model, 0.0)),
    ]


def test_a_method_of_ones_own_is_told_once(watching: Watching) -> None:
    """One that calls torch's has its arguments handed on, and its result is its own."""

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> Any:
            super().zero_grad(set_to_none=set_to_none)
            return "mine"

    optimizer = Own(watching.model.parameters(), lr=0.1)
    watching.backward()
    result: Any = optimizer.zero_grad(set_to_none=False)
    assert result == "mine" and watching.told == [(optimizer, 0.0)]


def test_zeroing_inside_a_compiled_region_is_not_told(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the compiler traces, it runs as torch's own."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    watching.backward()
    watching.model.zero_grad()
    assert watching.told == [] and watching.model.weight.grad is None


def test_an_error_of_the_loop_is_its_own(watching: Watching) -> None:
    """A call that torch refuses raises as ever, and nothing is told."""
    with pytest.raises(TypeError):
        watching.model.zero_grad(wrong=1)  # type: ignore[call-arg]
    assert watching.told == []


@pytest.mark.parametrize("cls", [torch.optim.Optimizer, nn.Module])
def test_what_another_torch_lacks_is_named(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is missing is an error under its name; the other is there."""
    monkeypatch.delattr(cls, "zero_grad")
    missing = [key for key, value in zero_targets() if isinstance(value, AttributeError)]
    assert missing == [f"{cls.__name__}.zero_grad"] and len(targets()) == 1


def test_everything_is_restored() -> None:
    """Without observers both classes have their own methods."""
    classes = (torch.optim.Optimizer, nn.Module)
    before = [vars(cls)["zero_grad"] for cls in classes]
    ends = [registry.attach(target, Watching()) for target in targets()]
    assert all(vars(cls)["zero_grad"] is not b for cls, b in zip(classes, before, strict=True))
    for end in ends:
        end()
    assert [vars(cls)["zero_grad"] for cls in classes] == before
