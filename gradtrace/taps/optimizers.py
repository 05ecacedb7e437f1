"""Optimizer steps, through the lists of hooks that torch calls around every one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from gradtrace.taps.backward import in_backward
from gradtrace.taps.hooklists import HookList
from gradtrace.taps.patches import Function, Observers, registry


class StepObserver(Protocol):
    """Told of the outermost `step` of every optimizer."""

    def before_step(self, optimizer: Optimizer, closure: bool, in_backward: bool) -> None:
        """Gradients are still what backward and clipping made them, unless there is a closure."""

    def after_step(self, optimizer: Optimizer, closure: bool, in_backward: bool) -> None:
        """The parameters have moved."""


def attach(observer: StepObserver) -> Callable[[], None]:
    """Watches all optimizers, present and future; returns what ends that, safe to call twice.

    Any thread, at any time: no step under way is disturbed. Raises AttributeError where torch
    differs.
    """
    with ExitStack() as stack:
        for hooks, name in (
            (_before, "_global_optimizer_pre_hooks"),
            (_after, "_global_optimizer_post_hooks"),
        ):
            stack.callback(registry.attach(hooks.target(torch_optimizer, name), observer))
        return stack.pop_all().close
    raise AssertionError("unreachable")


def _telling_before(observers: Observers) -> Function:
    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        watching = observers()
        if watching and not torch.compiler.is_compiling() and _outermost():
            closure, inside = _has_closure(args, kwargs), in_backward()
            for observer in watching:
                observer.before_step(optimizer, closure, inside)

    return before


def _telling_after(observers: Observers) -> Function:
    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        watching = observers()
        if watching and not torch.compiler.is_compiling() and _outermost():
            closure, inside = _has_closure(args, kwargs), in_backward()
            for observer in watching:
                observer.after_step(optimizer, closure, inside)

    return after


_before = HookList(_telling_before)
_after = HookList(_telling_after)
"""Per process by nature: they stand in torch's module. One each for all time, see `HookList`."""


def _outermost() -> bool:
    """Whether the hook's caller is the only `step` under way on this thread's stack.

    A subclass that calls `super().step()` fires the hooks twice. The stack itself is asked: a
    counter would stay wrong after a step that raised, for then no post hook runs. Every hooked
    step runs through one wrapper, so its code object marks a step.
    """
    frame = sys._getframe(2)
    code = frame.f_code
    outer = frame.f_back
    while outer is not None:
        if outer.f_code is code:
            return False
        outer = outer.f_back
    return True


def _has_closure(args: Any, kwargs: Any) -> bool:
    return kwargs.get("closure") is not None or (len(args) > 1 and args[1] is not None)
