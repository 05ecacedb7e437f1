"""A model looked at without changing it, and how a loss function is called.

The one convention of losses: a `loss_fn` whose first parameter is called `model` (or `module`,
`net`, `network`) is called as `loss_fn(model, batch)`; any other is a criterion, called as
`loss_fn(model(inputs), target)` with `batch = (inputs, target)`. It returns the mean over its
batch, as a tensor of one value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_MODEL_NAMES = ("model", "module", "net", "network")


def check_measurable(model: Any, loss_fn: Any) -> None:
    """Raises TypeError or ValueError unless the model has gradients and the loss can be called."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(loss_fn, type):
        raise TypeError(
            f"loss_fn is the class {loss_fn.__name__}; expected a callable from outputs and "
            f"targets to the loss: make an instance, {loss_fn.__name__}()"
        )
    if not callable(loss_fn):
        raise TypeError(f"loss_fn is a {type(loss_fn).__name__}; expected a callable")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "the model has no parameter that requires a gradient, so there is nothing to measure; "
            "expected it as it was trained: call model.requires_grad_()"
        )


def takes_model(loss_fn: Callable[..., Any]) -> bool:
    """Whether a loss function calls the model itself, by the name of its first parameter."""
    try:
        first = next(iter(inspect.signature(loss_fn).parameters.values()), None)
    except (TypeError, ValueError):
        return False
    return first is not None and first.name in _MODEL_NAMES


def loss_of(loss_fn: Callable[..., Any], model: Callable[..., Any], batch: Any) -> Tensor:
    """The loss of a batch, a tensor of shape []; `model` is a module or stands in for one.

    Raises TypeError or ValueError that says what a batch or a loss should have been.
    """
    if takes_model(loss_fn):
        return _scalar(loss_fn(model, batch))
    try:
        inputs, target = batch
    except (TypeError, ValueError):
        raise ValueError(
            f"batch is a {type(batch).__name__}; a criterion needs a pair (inputs, target): "
            "otherwise give a loss_fn(model, batch)"
        ) from None
    return _scalar(loss_fn(model(inputs), target))


def _scalar(found: Any) -> Tensor:
    if not isinstance(found, Tensor):
        raise TypeError(
            f"loss_fn returned a {type(found).__name__}; expected a tensor, the mean loss of its "
            "batch: return it without .item() or float()"
        )
    if found.numel() != 1:
        raise ValueError(
            f"loss_fn returned a tensor of shape {tuple(found.shape)}; expected one value, the "
            "mean loss of its batch: use reduction='mean'"
        )
    return found.reshape(())


@contextmanager
def read_only(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, its buffers are copies and random generators are forked.

    Afterwards each module has its own mode and its own buffers again, whatever a forward wrote.
    Parameters and their `.grad` are the caller's care: take gradients with `torch.func` or
    `torch.autograd.grad`, not with `backward`. Costs a copy of the buffers. Not for a model that
    another thread uses meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    # One copy of each, so that what modules share they go on sharing.
    copies = {id(buffer): buffer.detach().clone() for _, _, buffer in buffers}
    with torch.random.fork_rng():
        try:
            for module, name, buffer in buffers:
                setattr(module, name, copies[id(buffer)])
            model.eval()
            yield
        finally:
            for module, name, buffer in buffers:
                setattr(module, name, buffer)
            for module, training in modes:
                module.training = training
