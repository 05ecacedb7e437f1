"""Clipping: torch's own functions under any import, and FSDP1's method.

`clip_grad_norm_`, `clip_grads_with_norm_` and `clip_grad_value_` are decorated, and the decorator
keeps the real function in its closure: replacing it there reaches also a name that user code
imported long ago.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gradtrace.taps.patches import Function, Observers, Target, attribute, closure


class ClipObserver(Protocol):
    """Told of clipping calls, before they change anything and after."""

    def before_clip(self, parameters: Iterable[Any]) -> Any:
        """The result goes to the `after_` method."""

    def after_norm_clip(self, token: Any, max_norm: Any, total_norm: Tensor, order: float) -> None:
        """`total_norm` is the norm of order `order` that the call worked with."""

    def after_value_clip(self, token: Any, clip_value: Any) -> None:
        """Values were clamped to +-`clip_value`."""


class _Orders(threading.local):
    """The norm type of the `clip_grad_norm_` calls under way in this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[float] = []


_orders = _Orders()


def clip_targets() -> Iterator[tuple[str, Target | AttributeError]]:
    """Each function of torch that clips, or why it cannot be watched."""
    module = sys.modules["torch.nn.utils.clip_grad"]
    for name, wrap in (
        ("clip_grad_norm_", _wrap_norm),
        ("_clip_grads_with_norm_", _wrap_scaling),
        ("clip_grad_value_", _wrap_value),
    ):
        try:
            yield name, closure(getattr(module, name), "func", wrap)
        except AttributeError as error:
            yield name, error


def fsdp_target() -> Target | None:
    """FSDP1's own clipping method, if FSDP1 has been imported."""
    module = sys.modules.get("torch.distributed.fsdp")
    cls = getattr(module, "FullyShardedDataParallel", None)
    return None if cls is None else attribute(cls, "clip_grad_norm_", _wrap_fsdp)


def as_list(parameters: Any) -> Any:
    """Parameters as a list, so that they can be read twice.

    An iterator is used up by reading it; the functions behind accept a list just as well.
    """
    if isinstance(parameters, (Tensor, list, tuple)):
        return parameters
    return list(parameters) if isinstance(parameters, Iterator) else parameters


def _before(watching: Sequence[ClipObserver], parameters: Any) -> list[tuple[ClipObserver, Any]]:
    """Tells the observers; each with what it gave back."""
    items = (parameters,) if isinstance(parameters, Tensor) else parameters
    return [(observer, observer.before_clip(items)) for observer in watching]


def _wrap_norm(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
        if not observers() or torch.compiler.is_compiling():
            return original(*args, **kwargs)
        stack = _orders.stack
        stack.append(kwargs.get("norm_type", args[2] if len(args) > 2 else 2.0))
        try:
            return original(*args, **kwargs)
        finally:
            stack.pop()

    return clip_grad_norm_


def _wrap_scaling(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def _clip_grads_with_norm_(
        parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any
    ) -> Any:
        watching = observers()
        if not watching or torch.compiler.is_compiling():
            return original(parameters, max_norm, total_norm, *args, **kwargs)
        parameters = as_list(parameters)
        stack = _orders.stack
        order = stack[-1] if stack else 2.0
        told = _before(watching, parameters)
        result = original(parameters, max_norm, total_norm, *args, **kwargs)
        for observer, token in told:
            observer.after_norm_clip(token, max_norm, total_norm, order)
        return result

    return _clip_grads_with_norm_


def _wrap_value(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def clip_grad_value_(parameters: Any, clip_value: Any, *args: Any, **kwargs: Any) -> Any:
        watching = observers()
        if not watching or torch.compiler.is_compiling():
            return original(parameters, clip_value, *args, **kwargs)
        parameters = as_list(parameters)
        told = _before(watching, parameters)
        result = original(parameters, clip_value, *args, **kwargs)
        for observer, token in told:
            observer.after_value_clip(token, clip_value)
        return result

    return clip_grad_value_


def _wrap_fsdp(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def clip_grad_norm_(self: Any, max_norm: Any, norm_type: Any = 2.0) -> Any:
        watching = observers()
        if not watching:
            return original(self, max_norm, norm_type)
        parameters = list(self.parameters())
        told = _before(watching, parameters)
        total_norm = original(self, max_norm, norm_type)
        for observer, token in told:
            observer.after_norm_clip(token, max_norm, total_norm, norm_type)
        return total_norm

    return clip_grad_norm_
