"""Losses and the end of each backward, whichever way it is spelled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gradtrace.measure.flat import whole
from gradtrace.taps.patches import Function, Observers, Target, attribute

_MOST_NODES = 1000


class BackwardObserver(Protocol):
    """Told of every outermost backward that accumulates gradients."""

    def before_backward(self, outputs: Sequence[Any]) -> Any:
        """The result goes to `after_backward`."""

    def after_backward(
        self, outputs: Sequence[Any], weights: Sequence[Any], inputs: Sequence[Any], token: Any
    ) -> None:
        """Not called when the backward raised; `weights` are the gradients it started with.

        `inputs` are the tensors to which gradients were confined, empty for all.
        """


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
        weights = args[0] if args and isinstance(args[0], (tuple, list)) else ()
        inputs = args[3] if len(args) > 3 and isinstance(args[3], (tuple, list)) else ()
        tokens = [observer.before_backward(t_outputs) for observer in watching]
        result = original(t_outputs, *args, **kwargs)
        for observer, token in zip(watching, tokens, strict=True):
            observer.after_backward(t_outputs, weights, inputs, token)
        return result

    return _engine_run_backward


def loss_of(outputs: Sequence[Any], weights: Sequence[Any] = ()) -> Tensor | None:
    """A copy of the value that a backward started from: the sum of outputs of one element each.

    `weights` are what the outputs' gradients were given as, None for 1: they multiply. None when an
    output has several elements or is a GradientEdge: what is minimised is then not among the
    outputs; nor where a value is made of several tensors, as no one else knows how they make one.
    """
    if not outputs or not all(isinstance(one, Tensor) and one.numel() == 1 for one in outputs):
        return None
    with torch.no_grad():
        loss: Tensor | None = None
        for place, output in enumerate(outputs):
            value = whole(output.detach())
            if value is None:
                return None
            value = value.reshape(())
            weight = weights[place] if place < len(weights) else None
            if isinstance(weight, Tensor):
                known = whole(weight.detach())
                if known is None:
                    return None
                value = value * known.reshape(())
            loss = value.clone() if loss is None else loss + value
    return loss


def comes_from(outputs: Sequence[Any], is_one: Callable[[Any], bool]) -> bool:
    """Whether a leaf of which `is_one` is true took part in computing these outputs.

    The graph is walked, about 1 us a node, up to the first such leaf or the first 1,000 nodes.
    """
    waiting = [one.grad_fn for one in outputs if isinstance(one, Tensor)]
    seen: set[Any] = set()
    while waiting and len(seen) < _MOST_NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if is_one(getattr(node, "variable", None)):
            return True
        waiting += [after for after, _ in node.next_functions]
    return False


def described(outputs: Sequence[Any]) -> str:
    """What a backward started from, in words."""
    strange = [one for one in outputs if not isinstance(one, Tensor)]
    if strange:
        return f"a {type(strange[0]).__name__}"
    shapes = ", ".join(str(tuple(one.shape)) for one in outputs[:3])
    return f"tensors of shape {shapes}" if len(outputs) > 1 else f"a tensor of shape {shapes}"
