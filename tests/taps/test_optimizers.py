"""The outermost step of every optimizer is told, before and after."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gradtrace.taps.optimizers import attach


class Watching:
    """Remembers what it is told, and the parameter's value then."""

    def __init__(self) -> None:
        self.parameter = nn.Parameter(torch.tensor(1.0))
        self.parameter.grad = torch.tensor(1.0)
        self.told: list[tuple[str, Optimizer, bool, bool, float]] = []

    def _tell(self, when: str, optimizer: Optimizer, closure: bool, inside: bool) -> None:
        self.told.append((when, optimizer, closure, inside, float(self.parameter.detach())))

    def before_step(self, optimizer: Optimizer, closure: bool, in_backward: bool) -> None:
        self._tell("before", optimizer, closure, in_backward)

    def after_step(self, optimizer: Optimizer, closure: bool, in_backward: bool) -> None:
        self._tell("after", optimizer, closure, in_backward)


@pytest.fixture
def watching() -> Iterator[Watching]:
    observer = Watching()
    detach = attach(observer)
    yield observer
    detach()


def hooks() -> list[Any]:
    return [
        *torch_optimizer._global_optimizer_pre_hooks,
        *torch_optimizer._global_optimizer_post_hooks,
    ]


def test_a_step_is_told_before_and_after(watching: Watching) -> None:
    """Also of an optimizer made later; the parameter moves in between."""
    optimizer = torch.optim.SGD([watching.parameter], lr=0.25)
    optimizer.step()
    assert watching.told == [
        ("before", optimizer, False, False, 1.0),
        ("after", optimizer, False, False, 0.75),
    ]


@pytest.mark.parametrize("named", [True, False])
def test_a_closure_is_told(watching: Watching, named: bool) -> None:
    """By position and by name; a closure of None is none."""
    optimizer = torch.optim.SGD([watching.parameter], lr=0.25)

    def loss() -> float:
        return 1.0

    if named:
        optimizer.step(closure=loss)
        optimizer.step(closure=None)
    else:
        optimizer.step(loss)
        optimizer.step(None)
    assert [(when, closure) for when, _, closure, *_ in watching.told] == [
        ("before", True),
        ("after", True),
        ("before", False),
        ("after", False),
    ]


class Child(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Wrapping(Optimizer):
    """An optimizer that steps another one, like Lookahead."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure: Any = None) -> Any:
        return self.inner.step()


def test_a_step_within_a_step_is_part_of_it(watching: Watching) -> None:
    """A subclass that calls its parent's step, or an inner optimizer's, is told once."""
    child = Child([watching.parameter], lr=0.25)
    child.step()
    wrapping = Wrapping(torch.optim.SGD([watching.parameter], lr=0.25))
    wrapping.step()
    assert [(when, optimizer) for when, optimizer, *_ in watching.told] == [
        ("before", child),
        ("after", child),
        ("before", wrapping),
        ("after", wrapping),
    ]


def test_a_step_that_raises_spoils_no_later_one(watching: Watching) -> None:
    """It has no end to tell, and the next step is the outermost again."""

    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Broken([watching.parameter], lr=1.0).step()
    torch.optim.SGD([watching.parameter], lr=1.0).step()
    assert [when for when, *_ in watching.told] == ["before", "before", "after"]


def test_steps_inside_backward_are_told_as_such(watching: Watching) -> None:
    """An optimizer that a hook calls as soon as a gradient is there."""
    optimizer = torch.optim.SGD([watching.parameter], lr=0.25)

    def step(parameter: Tensor) -> None:
        optimizer.step()

    watching.parameter.register_post_accumulate_grad_hook(step)
    watching.parameter.sum().backward()
    assert [(when, inside) for when, _, _, inside, _ in watching.told] == [
        ("before", True),
        ("after", True),
    ]


def test_a_step_inside_a_compiled_region_is_not_told(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the compiler traces, the hooks do nothing that it would trace."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.optim.SGD([watching.parameter], lr=0.25).step()
    assert watching.told == [] and float(watching.parameter.detach()) == 0.75


def test_two_observers_come_and_go(watching: Watching) -> None:
    """Each is told; the one that left is not, and leaves no hook."""
    before = hooks()
    other = Watching()
    detach = attach(other)
    optimizer = torch.optim.SGD([watching.parameter], lr=0.25)
    optimizer.step()
    detach()
    assert hooks() == before
    optimizer.step()
    assert len(watching.told) == 4 and len(other.told) == 2


def test_half_an_attachment_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has no list of hooks after a step the one before is put back, and it is told."""
    place, before = vars(torch_optimizer), torch_optimizer._global_optimizer_pre_hooks
    monkeypatch.delitem(place, "_global_optimizer_post_hooks")
    with pytest.raises(AttributeError, match="no dict of hooks _global_optimizer_post_hooks"):
        attach(Watching())
    assert torch_optimizer._global_optimizer_pre_hooks is before


def coming_and_going() -> None:
    """Observers that come and go in another thread, by the time this returns."""

    def come_and_go() -> None:
        first = attach(Watching())
        attach(Watching())()
        first()
        attach(Watching())()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    thread.join()


REGISTER: dict[str, Callable[[Any, Any], Any]] = {
    "before, all": lambda optimizer, hook: register_optimizer_step_pre_hook(hook),
    "after, all": lambda optimizer, hook: register_optimizer_step_post_hook(hook),
    "before, one": lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    "after, one": lambda optimizer, hook: optimizer.register_step_post_hook(hook),
}


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("where", REGISTER)
def test_others_may_come_and_go_during_a_step(where: str, watched: bool) -> None:
    """A step that is inside one of its hooks meanwhile returns, whether it is watched or not."""
    observer = Watching()
    detach = attach(observer) if watched else None
    optimizer = torch.optim.SGD([observer.parameter], lr=0.25)
    calls: list[str] = []

    def hook(*_: Any) -> None:
        calls.append("hook")
        coming_and_going()

    # An iteration is broken only where more is to come: so another hook follows.
    handles = [REGISTER[where](optimizer, one) for one in (hook, lambda *_: calls.append("next"))]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
        if detach is not None:
            detach()
    assert calls == ["hook", "next"] and float(observer.parameter.detach()) == 0.75
    assert [when for when, *_ in observer.told] == ["before", "after"] * watched
    assert type(torch_optimizer._global_optimizer_pre_hooks) is OrderedDict
    assert type(torch_optimizer._global_optimizer_post_hooks) is OrderedDict


def test_an_observer_that_leaves_during_a_step_hears_no_more_of_it() -> None:
    """The step goes on; so nothing is told to a trace that has been closed meanwhile."""
    observer = Watching()
    detach = attach(observer)
    optimizer = torch.optim.SGD([observer.parameter], lr=0.25)
    optimizer.register_step_pre_hook(lambda *_: detach())
    optimizer.step()
    assert [when for when, *_ in observer.told] == ["before"]
