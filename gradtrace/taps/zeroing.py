"""Gradients set to zero or None by `zero_grad`, of an optimizer or of a module."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from gradtrace.taps.patches import Function, Observers, Target, attribute


class ZeroObserver(Protocol):
    """Told that gradients were zeroed."""

    def zeroed(self, owner: Any) -> None:
        """`owner.zero_grad()` returned."""


def zero_targets() -> Iterator[tuple[str, Target | AttributeError]]:
    """Both methods, or why one cannot be watched."""
    for cls in (torch.optim.Optimizer, nn.Module):
        try:
            yield f"{cls.__name__}.zero_grad", attribute(cls, "zero_grad", _wrap)
        except AttributeError as error:
            yield f"{cls.__name__}.zero_grad", error


def _wrap(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def zero_grad(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if not torch.compiler.is_compiling():
            for observer in observers():
                observer.zeroed(self)
        return result

    return zero_grad
