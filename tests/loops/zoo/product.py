"""{1, 2, 3 optimizers} x {six ways to clip} x {fp32, bf16, GradScaler} x {accumulation}."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.parts import ids, loader_of, squared
from zoo.tracing import Tracer
from zoo.truth import Truth

OPTIMIZERS = (1, 2, 3)
CLIPPING = ("none", "norm", "value", "per parameter", "per group", "by hand")
PRECISION = ("fp32", "bf16", "overflow")
ACCUMULATION = ("one", "three", "ragged")
BATCHES = {"one": 8, "three": 18, "ragged": 16}
"""How many batches there are: 8 steps, 6 steps of 3, 5 steps of 3 and one of a single batch."""


@dataclass(frozen=True)
class Case:
    """One of the product."""

    optimizers: int
    clipping: str
    precision: str
    accumulation: str

    @property
    def name(self) -> str:
        """The loop's name."""
        count = "1 optimizer" if self.optimizers == 1 else f"{self.optimizers} optimizers"
        clipping = "no clipping" if self.clipping == "none" else self.clipping
        return ", ".join((count, clipping, self.precision, self.accumulation))


def cases() -> Iterator[Case]:
    """Every third of the product: all combinations of any three of the four kinds occur."""
    kinds = (OPTIMIZERS, CLIPPING, PRECISION, ACCUMULATION)
    for places in itertools.product(*(range(len(kind)) for kind in kinds)):
        if sum(places) % 3 == 0:
            yield Case(*(kind[i] for kind, i in zip(kinds, places, strict=True)))  # type: ignore[arg-type]


def optimizers_of(model: nn.Sequential, count: int) -> list[torch.optim.Optimizer]:
    """One with two groups, or one for each part of the model."""
    first, second, third = model[0].parameters(), model[2].parameters(), model[4].parameters()
    sgd = functools.partial(torch.optim.SGD, momentum=0.9)
    if count == 1:
        groups: list[Any] = [{"params": first, "lr": 0.05}, {"params": [*second, *third]}]
        return [sgd(groups, lr=0.02)]
    if count == 2:
        return [sgd(first, lr=0.05), torch.optim.AdamW([*second, *third], lr=1e-2)]
    return [sgd(first, lr=0.05), torch.optim.AdamW(second, lr=1e-2), sgd(third, lr=0.02)]


def clip(truth: Truth, model: nn.Module, optimizers: list[torch.optim.Optimizer], how: str) -> None:
    """Clips in one of the ways."""
    everything = list(model.parameters())
    if how == "norm":
        with truth.clipping("norm", everything):
            nn.utils.clip_grad_norm_(model.parameters(), 0.8)
    elif how == "value":
        with truth.clipping("value", everything):
            nn.utils.clip_grad_value_(everything, 0.1)
    elif how == "per parameter":
        for parameter in everything:
            with truth.clipping("norm", [parameter]):
                nn.utils.clip_grad_norm_(parameter, 0.3)
    elif how == "per group":
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                with truth.clipping("norm", group["params"]):
                    nn.utils.clip_grad_norm_(group["params"], 0.5)
    elif how == "by hand":
        with truth.clipping("own norm", everything):
            by_hand(everything, 0.8)


def by_hand(parameters: list[nn.Parameter], limit: float) -> None:
    """What people write who do not trust the library."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm: Tensor = torch.stack([gradient.norm() for gradient in gradients]).norm()
    for gradient in gradients:
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))


def train(case: Case, truth: Truth, tracer: Tracer) -> None:
    """The loop of one case."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizers = optimizers_of(model, case.optimizers)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=case.precision == "overflow")
    last = BATCHES[case.accumulation] - 1
    loader = loader_of(4 * (last + 1), shuffle=True)
    window = 1 if case.accumulation == "one" else 3
    with tracer(model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.precision == "bf16"):
                loss = squared(model, x, y) / window
            if case.precision == "overflow" and k == 2 * window:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            truth.backward(loss, (0, k, ids(index)))
            if k % window != window - 1 and k != last:
                continue
            scale = scaler.get_scale()
            truth.gradients(model, scale=scale)
            if case.clipping != "none":
                for optimizer in optimizers:
                    scaler.unscale_(optimizer)
                clip(truth, model, optimizers, case.clipping)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            truth.step(*optimizers, skipped=scaler.get_scale() < scale)
            for optimizer in optimizers:
                optimizer.zero_grad()
    truth.finish(model=model, optimizers=optimizers, loader=loader, scaler=scaler, batch=x)


LOOPS = {case.name: functools.partial(train, case) for case in cases()}
