"""Weights and gradients that are no plain tensors of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zoo.parts import mlp, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


class Wrapped(Tensor):
    """A weight as those of quantised training: inner values and a scale."""

    values_: Tensor
    factor: float

    @staticmethod
    def __new__(cls, values: Tensor, factor: float) -> Wrapped:
        make: Any = Tensor._make_wrapper_subclass
        made: Wrapped = make(cls, values.shape, dtype=values.dtype, device=values.device)
        made.values_, made.factor = values, factor
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Wrapped({tuple(self.shape)})"

    def __tensor_flatten__(self) -> tuple[list[str], float]:
        return ["values_"], self.factor

    @staticmethod
    def __tensor_unflatten__(inner: Any, factor: float, size: Any, stride: Any) -> Wrapped:
        return Wrapped(inner["values_"], factor)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name == "detach":
            return Wrapped(args[0].values_, args[0].factor)
        if name in ("add_", "copy_", "mul_"):
            target, *rest = args
            rest = [plain(e) / target.factor if isinstance(e, Tensor) else e for e in rest]
            function(target.values_, *rest, **(kwargs or {}))
            return target
        args, kwargs = tree_map(plain, (args, kwargs or {}))
        return function(*args, **kwargs)


def plain(value: Any) -> Any:
    """The values of a wrapped tensor; anything else as it is."""
    return value.values_ * value.factor if isinstance(value, Wrapped) else value


def wrapped_weights(truth: Truth, tracer: Tracer) -> None:
    """Weights of a tensor subclass, whose gradients are plain."""
    model = mlp()
    layers: Any = (model[0], model[2])
    for layer in layers:
        layer.weight = nn.Parameter(Wrapped(layer.weight.detach() / 0.5, 0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, foreach=False)
    with tracer(model):
        for _ in range(15):
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    for weight in optimizer.param_groups[0]["params"][::2]:
        truth.keep("weight", weight.values_)
    truth.finish(optimizer=optimizer)


class Queries(nn.Module):
    """Returns its parameter, as learned queries do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 6))

    def forward(self) -> Tensor:
        return self.table


def leaf_output(truth: Truth, tracer: Tracer) -> None:
    """A hook on a module's output is a hook on a parameter."""
    model = nn.ModuleDict({"queries": Queries(), "head": mlp()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with tracer(model):
        for _ in range(15):
            optimizer.zero_grad()
            loss = model["head"](model["queries"]()).square().mean()
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
    truth.finish(model=model, optimizer=optimizer)


def default_device(truth: Truth, tracer: Tracer) -> None:
    """Another default device is nothing that a trace's own tensors follow."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = [(torch.randn(5, 6), torch.randn(5, 1)) for _ in range(15)]
    with torch.device("meta"), tracer(model):
        for x, y in batches:
            loss = squared(model, x, y)
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            with truth.clipping("value", model.parameters()):
                nn.utils.clip_grad_value_(model.parameters(), 0.1)
            truth.step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer)


LOOPS = (
    wrapped_weights,
    leaf_output,
    default_device,
)
