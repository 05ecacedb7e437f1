"""Loops of random shape: a body of random operations, repeated as people's bodies are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from account import Account, Drawn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import custom
from zoo.tracing import Tracer, Watch
from zoo.truth import norm_of

PARTS = ("0", "2")
"""The model's layers, of which an optimizer may have one, and a backward may reach one."""


@dataclass(frozen=True)
class Op:
    """One operation; it is done when `k % every == every - 1`."""

    kind: str
    how: str = ""
    every: int = 1


@dataclass(frozen=True)
class Program:
    """A loop: what its body does, how many optimizers and loaders it has, what it fetches ahead."""

    body: tuple[Op, ...]
    optimizers: int = 1
    loaders: int = 1
    ahead: bool = False
    shuffle: bool = False
    given: bool = True
    momentum: bool = False
    divisor: int = 1
    by_hand: bool = False
    """`trace.step()` ends the body."""
    rounds: int = 8


def data(n: int, first: int) -> TensorDataset:
    """Samples that know their index."""
    generator = torch.Generator().manual_seed(first)
    index = torch.arange(n)
    return TensorDataset(index, torch.randn(n, 3, generator=generator))


class Source:
    """A loader that is begun again at its end."""

    def __init__(self, loader: DataLoader[Any], *, ahead: bool) -> None:
        self.loader = loader
        self._batches = self._all(ahead)

    def _all(self, ahead: bool) -> Iterator[tuple[Drawn, Tensor]]:
        for epoch in range(100):
            batches: Any = custom.Ahead(self.loader) if ahead else self.loader
            for k, (index, x) in enumerate(batches):
                yield (epoch, k, tuple(index.tolist())), x

    def draw(self) -> tuple[Drawn, Tensor]:
        return next(self._batches)


class Run:
    """A program that runs, with a trace or without, and writes its account."""

    def __init__(self, program: Program, tracer: Tracer) -> None:
        self.program = program
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        momentum = 0.9 if program.momentum else 0.0
        parts = [self.model] if program.optimizers == 1 else [self.model[0], self.model[2]]
        self.optimizers = [
            torch.optim.SGD(part.parameters(), lr=0.01 * (k + 1), momentum=momentum)
            for k, part in enumerate(parts)
        ]
        self.account = Account(self.model)
        loaders = [
            DataLoader(data(22, 0), batch_size=4, shuffle=program.shuffle),
            DataLoader(data(9, 1), batch_size=3),
        ][: program.loaders]
        self.sources = [Source(one, ahead=program.ahead) for one in loaders]
        self.current: list[tuple[Drawn, Tensor]] = []
        self._computed = False
        self.numbers: list[float] = []
        with tracer(self.model, loader=loaders if program.given else None) as trace:
            self.trace: Watch = trace
            if program.divisor > 1:
                trace.divide(program.divisor)
            for self.k in range(program.rounds):
                for op in program.body:
                    due = self.k % op.every == op.every - 1
                    if due and getattr(self, op.kind)(op.how):
                        break  # `continue`, in the loop's words
                if program.by_hand:
                    self.account.marked()
                    trace.step()
        self.state = [p.detach().clone() for p in self.model.parameters()]

    def _named(self, how: str) -> dict[str, nn.Parameter]:
        named = dict(self.model.named_parameters())
        return {name: p for name, p in named.items() if how in ("", name.split(".")[0])}

    # -- the operations ---

    def draw(self, how: str) -> None:
        """From one of the loaders."""
        if self._computed:
            self.current, self._computed = [], False
        self.current.append(self.sources[int(how) % len(self.sources)].draw())
        self.account.drawn(self.current[-1][0])

    def skip(self, how: str) -> bool:
        """`continue`."""
        self.account.passed_over()
        self._computed = True
        return True

    def evaluate(self, how: str) -> None:
        """A forward without gradients."""
        with torch.no_grad():
            self.numbers.append(float(self.model(torch.ones(2, 3)).sum()))

    def forward(self, how: str) -> None:
        """A forward that nothing comes of."""
        self.model(torch.ones(2, 3))

    def backward(self, how: str) -> None:
        """Of the whole model or a part."""
        current = self.current
        self._computed = True
        x = torch.cat([x for _, x in current]) if current else torch.ones(2, 3)
        if how == "2":
            hidden = self.model[:2](x).detach()
            out = self.model[2](hidden)
        elif how == "0":
            out = self.model[:2](x)
        else:
            out = self.model(x)
        loss = (out - 1).square().mean()
        (loss / self.program.divisor).backward()
        self.numbers.append(float(loss.detach()))
        told = sorted(batch for batch, _ in current)
        self.account.backward(float(loss.detach()), self.program.divisor, self._named(how), told)

    def clip(self, how: str) -> None:
        """To a norm, a value, each parameter, or to infinity."""
        with_grad = {n: p for n, p in self._named("").items() if p.grad is not None}
        groups = [{n: p} for n, p in with_grad.items()] if how == "each" else [with_grad]
        groups = groups if with_grad else []  # torch cannot clip nothing to a value
        for group in groups:
            before = {n: norm_of(p.grad) for n, p in group.items() if p.grad is not None}
            if how == "value":
                nn.utils.clip_grad_value_(list(group.values()), 0.05)
            else:
                limit = math.inf if how == "infinity" else 0.2
                nn.utils.clip_grad_norm_(list(group.values()), limit)
            kind = {"each": "norm", "infinity": "infinity"}.get(how, how)
            self.account.clipped(kind, before)

    def zero(self, how: str) -> None:
        """By the optimizers, the module, to None, or in place."""
        for optimizer in self.optimizers if how in ("optimizer", "in place") else []:
            optimizer.zero_grad(set_to_none=how == "optimizer")
            self.account.zeroed(self._owned(optimizer))
        if how == "module":
            self.model.zero_grad()
        for parameter in self.model.parameters():
            if how == "None":
                parameter.grad = None
            elif how == "one by one" and parameter.grad is not None:
                parameter.grad.zero_()
        if how not in ("optimizer", "in place"):
            self.account.zeroed(self._named(""))

    def discard(self, how: str) -> bool:
        """Zero, and `continue`."""
        self.zero(how)
        self.account.passed_over()
        self._computed = True
        return True

    def _owned(self, optimizer: torch.optim.Optimizer) -> list[str]:
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [name for name, p in self.model.named_parameters() if id(p) in mine]

    def step(self, how: str) -> None:
        """One of the optimizers, or all of them."""
        some = (
            self.optimizers if how == "all" else [self.optimizers[int(how) % len(self.optimizers)]]
        )
        for optimizer in some:
            lr = tuple(group["lr"] for group in optimizer.param_groups)
            self.account.used(self._owned(optimizer), lr)
            optimizer.step()

    def replace(self, how: str) -> None:
        """A layer is another from now on, for its optimizer too."""
        layer: Any = self.model[int(how)]
        self.account.zeroed(self._named(how))
        for name in ("weight", "bias"):
            old = getattr(layer, name)
            new = nn.Parameter(old.detach() * 0.5)
            setattr(layer, name, new)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["params"] = [new if p is old else p for p in group["params"]]

    def log(self, how: str) -> None:
        """Any value."""
        self.trace.log(told=float(self.k))
