"""Automatic mixed precision: the loss scale, unscaling, and steps the scaler skips."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradtrace.taps.patches import Function, Observers, Target, attribute


class ScalerObserver(Protocol):
    """Told what a GradScaler does."""

    def scaled(self, raw: Any, scaled: Any, scaler: Any) -> None:
        """`scaler.scale(raw)` returned `scaled`."""

    def unscaled(self, scaler: Any, optimizer: Optimizer) -> None:
        """The optimizer's gradients have been divided by the scale."""

    def before_scaler_step(self, scaler: Any, optimizer: Optimizer) -> Any:
        """The result goes to `after_scaler_step`."""

    def after_scaler_step(self, token: Any, optimizer: Optimizer, returned: bool) -> None:
        """Also called when the step raised; then `returned` is False."""


def scaler_targets() -> Iterator[tuple[str, Target | AttributeError]]:
    """The scaler's methods, or why one cannot be watched."""
    cls = torch.amp.GradScaler
    for name, wrap in (("scale", _wrap_scale), ("unscale_", _wrap_unscale), ("step", _wrap_step)):
        try:
            yield f"GradScaler.{name}", attribute(cls, name, wrap)
        except AttributeError as error:
            yield f"GradScaler.{name}", error
    for below in _subclasses(cls):  # such as FSDP's, which scale and unscale in their own way
        for name, wrap in (("scale", _wrap_scale), ("unscale_", _wrap_unscale)):
            if name in vars(below):
                yield f"{below.__name__}.{name}", attribute(below, name, wrap)


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    below: type[Any]
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)


def loss_scale(scaler: Any) -> Tensor | None:
    """A copy of the scaler's present scale, on its device; None while it is switched off."""
    if not scaler.is_enabled():
        return None
    scale = scaler._get_scale_async()
    return None if scale is None else scale.detach().clone()


def _wrap_scale(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        watching = observers()
        result = original(self, outputs)
        if watching and not torch.compiler.is_compiling() and self.is_enabled():
            for observer in watching:
                observer.scaled(outputs, result, self)
        return result

    return scale


def _wrap_unscale(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def unscale_(self: Any, optimizer: Optimizer) -> Any:
        result = original(self, optimizer)
        if self.is_enabled():
            for observer in observers():
                observer.unscaled(self, optimizer)
        return result

    return unscale_


def _wrap_step(original: Function, observers: Observers) -> Function:
    @functools.wraps(original)
    def step(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        watching = observers()
        if not watching or not self.is_enabled():
            return original(self, optimizer, *args, **kwargs)
        tokens = [observer.before_scaler_step(self, optimizer) for observer in watching]
        returned = False
        try:
            result = original(self, optimizer, *args, **kwargs)
            returned = True
            return result
        finally:
            for observer, token in zip(watching, tokens, strict=True):
                observer.after_scaler_step(token, optimizer, returned)

    return step
