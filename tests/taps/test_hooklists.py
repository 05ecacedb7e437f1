"""What stands in torch's place for a dict of hooks is that dict, and one hook more."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from torch.utils.hooks import RemovableHandle

from gradtrace.taps.hooklists import HookList
from gradtrace.taps.patches import Registry


def named(name: str) -> Callable[[], str]:
    return lambda: name


def register(module: Any, name: str) -> RemovableHandle:
    """As torch does it."""
    handle = RemovableHandle(module.hooks)
    module.hooks[handle.id] = named(name)
    return handle


def called(module: Any) -> list[str]:
    return [hook() for hook in module.hooks.values()]


@pytest.fixture
def module() -> Any:
    made = ModuleType("made")
    vars(made)["hooks"] = OrderedDict()
    return made


@pytest.fixture
def hooks() -> HookList:
    return HookList(lambda observers: lambda: f"told {len(observers())}")


def test_one_hook_follows_those_of_others(module: Any, hooks: HookList) -> None:
    """It tells all observers, and is gone with the last; the dict is then the one it was."""
    registry, real = Registry(), module.hooks
    register(module, "before")
    detach = [registry.attach(hooks.target(module, "hooks"), object()) for _ in range(2)]
    register(module, "inside")
    assert called(module) == ["before", "inside", "told 2"]
    for one in detach:
        one()
    assert called(module) == ["before", "inside"] and module.hooks is real


def test_handles_work_whenever_they_were_got(module: Any, hooks: HookList) -> None:
    """A hook registered before is removed inside, and one registered inside afterwards."""
    registry = Registry()
    first = register(module, "before")
    detach = registry.attach(hooks.target(module, "hooks"), object())
    second = register(module, "inside")
    first.remove()
    assert called(module) == ["inside", "told 1"] and len(module.hooks) == 1
    detach()
    registry.attach(hooks.target(module, "hooks"), object())()
    second.remove()
    assert called(module) == []


def test_an_iteration_goes_on_whatever_happens(module: Any, hooks: HookList) -> None:
    """It sees the hooks that were there when it began; a closed registry tells nobody."""
    registry = Registry()
    register(module, "a")
    register(module, "b")
    detach = registry.attach(hooks.target(module, "hooks"), object())
    iteration = iter(module.hooks.values())
    assert next(iteration)() == "a"
    register(module, "c")
    detach()
    assert [hook() for hook in iteration] == ["b", "told 0"]


def test_a_copy_is_an_ordinary_dict(module: Any, hooks: HookList) -> None:
    """As a handle on a user's object takes it along when that is copied."""
    registry = Registry()
    registry.attach(hooks.target(module, "hooks"), object())
    handle = register(module, "mine")
    twin = copy.deepcopy(handle)
    assert twin.id == handle.id
    made = copy.deepcopy(module.hooks)
    assert type(made) is OrderedDict and list(made) == [handle.id]


def test_what_was_put_back_too_late_does_no_harm(module: Any, hooks: HookList) -> None:
    """Somebody restores what they found inside a trace: it passes through, and is used again."""
    registry = Registry()
    register(module, "mine")
    detach = registry.attach(hooks.target(module, "hooks"), object())
    found = module.hooks
    detach()
    module.hooks = found
    assert called(module) == ["mine", "told 0"]
    detach = registry.attach(hooks.target(module, "hooks"), object())
    assert called(module) == ["mine", "told 1"]
    detach()
    assert called(module) == ["mine", "told 0"]


def test_a_missing_dict_is_told(hooks: HookList) -> None:
    """Where torch differs."""
    with pytest.raises(AttributeError, match="sys has no dict of hooks nothing"):
        hooks.target(sys, "nothing")
