"""What a user would write around a loop, real or empty, so that one loop runs with and without."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from gradtrace import Sampling, Trace, gradtrace
from gradtrace.measure import histograms, parameters

PLANS = {
    "cpu": Sampling(activations=1, updates=1, histograms=1),
    "accelerator": Sampling(first=0, activations=7, updates=7),
}
"""The CPU's plan measures everything; the accelerator's, run on CPU tensors, what it must, and
without the first steps in which a loop is looked at more closely."""


class Watch:
    """A trace, or nothing: `trace` is None where the loop runs bare."""

    def __init__(self, trace: Trace | None = None) -> None:
        self.trace: Any = trace

    def batches(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """The items, watched."""
        return iter(iterable) if self.trace is None else self.trace.batches(iterable)

    def step(self) -> None:
        """Closes a step by hand."""
        self._call("step")

    def log(self, **values: float | Tensor) -> None:
        """Logs values."""
        self._call("log", **values)

    def take(self, loader: Any, **place: int) -> None:
        """Says which batch comes next."""
        self._call("take", loader, **place)

    def divide(self, by: float) -> None:
        """Says what the losses that follow were divided by."""
        self._call("divide", by)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        method = getattr(self.trace, name, None)
        if method is not None:
            method(*args, **kwargs)


class Tracer:
    """`with tracer(model, loader=loader) as trace:` - real for one of PLANS, else empty."""

    def __init__(self, plan: str | None = None) -> None:
        self.plan = plan
        self.traces: list[Trace] = []

    @contextmanager
    def __call__(self, model: Any, *, loader: Any = None, **options: Any) -> Iterator[Watch]:
        """A trace of this model; options that gradtrace does not know yet are left out."""
        if self.plan is None:
            yield Watch()
            return
        known = inspect.signature(gradtrace).parameters
        options = {name: value for name, value in options.items() if name in known}
        trace = gradtrace(
            model, loader=loader, sampling=PLANS[self.plan], directory=None, **options
        )
        self.traces.append(trace)
        with trace:
            yield Watch(trace)


@contextmanager
def forced(plan: str | None) -> Iterator[None]:
    """Has CPU tensors measured as an accelerator's would be."""
    if plan != "accelerator":
        yield
        return
    kind = parameters._kind

    def foreign(tensor: Tensor) -> int:
        found = kind(tensor)
        dense = tensor.layout is torch.strided
        return parameters._FOREACH if dense and found != parameters._NONE else found

    on_device = histograms._count_on_device
    with (
        mock.patch.object(parameters, "_kind", foreign),
        mock.patch.object(histograms, "_count_on_host", on_device),
    ):
        yield
