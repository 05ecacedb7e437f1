"""Optimizer steps, through torch's public global hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gradtrace.taps.backward import in_backward


class StepObserver(Protocol):
    """Told of the outermost `step` of every optimizer."""

    def before_step(self, optimizer: Optimizer, closure: bool, in_backward: bool) -> None:
        """Gradients are still what backward and clipping made them, unless there is a closure."""

    def after_step(self, optimizer: Optimizer, closure: bool, in_backward: bool) -> None:
        """The parameters have moved."""


def attach(observer: StepObserver) -> Callable[[], None]:
    """Watches all optimizers, present and future; returns what ends that."""

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling() and _outermost():
            observer.before_step(optimizer, _has_closure(args, kwargs), in_backward())

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling() and _outermost():
            observer.after_step(optimizer, _has_closure(args, kwargs), in_backward())

    handles = [register_optimizer_step_pre_hook(before)]
    try:
        handles.append(register_optimizer_step_post_hook(after))
    except BaseException:
        handles[0].remove()
        raise

    def detach() -> None:
        for handle in handles:
            handle.remove()

    return detach


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
