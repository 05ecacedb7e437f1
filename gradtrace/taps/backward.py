"""Losses and the end of each backward, whichever way it is spelled."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from torch import Tensor

from gradtrace.taps.patches import Function, Observers, Target, attribute


class BackwardObserver(Protocol):
    """Told of every outermost backward that accumulates gradients."""

    def before_backward(self, outputs: tuple[Tensor, ...]) -> Any:
        """The result goes to `after_backward`."""

    def after_backward(self, outputs: tuple[Tensor, ...], token: Any) -> None:
        """Not called when the backward raised."""


def in_backward() -> bool:
    """Whether the calling code runs inside a backward pass (a hook, a recomputation)."""
    running: bool = torch._C._current_graph_task_id() != -1
    return running


def backward_target() -> Target:
    """The function both `Tensor.backward` and `torch.autograd.backward` end in.

    Raises AttributeError when this torch has it under another name.
    """
    in_backward()
    return attribute(torch.autograd, "_engine_run_backward", _wrap)


def _wrap(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def _engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        watching = observers()
        if (
            not watching
            or not kwargs.get("accumulate_grad", False)
            or torch.compiler.is_compiling()
            or in_backward()
        ):
            return original(t_outputs, *args, **kwargs)
        tokens = [observer.before_backward(t_outputs) for observer in watching]
        result = original(t_outputs, *args, **kwargs)
        for observer, token in zip(watching, tokens, strict=True):
            observer.after_backward(t_outputs, token)
        return result

    return _engine_run_backward


def loss_of(outputs: tuple[Tensor, ...]) -> Tensor | None:
    """A copy of the scalar that a backward started from; several scalars are added.

    None when any output is no scalar: what is minimised is then not among the outputs; nor where
    a scalar is made of several tensors, as no one else knows how they make one value.
    """
    if not outputs or any(output.dim() for output in outputs):
        return None
    scalars = [_whole(output.detach()) for output in outputs]
    with torch.no_grad():
        loss: Tensor | None = None
        for scalar in scalars:
            if scalar is None:
                return None
            loss = scalar.clone() if loss is None else loss + scalar
    return loss


def _whole(scalar: Tensor) -> Tensor | None:
    """A scalar as a plain tensor; never a collective."""
    if type(scalar) is Tensor:
        return scalar
    if hasattr(scalar, "placements"):  # a DTensor: the same on all ranks, or a part of a sum
        same = all(placement.is_replicate() for placement in scalar.placements)
        return scalar.to_local() if same else None  # type: ignore[attr-defined]
    return None if hasattr(scalar, "__tensor_flatten__") else scalar.as_subclass(Tensor)
