"""What a step is where the optimizer is not a plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.homemade import SAM, Lookahead, ScheduleFree
from zoo.parts import ids, loader_of, mlp, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


def sam(truth: Truth, tracer: Tracer, clips: bool = False, closure: bool = False) -> None:
    """The step's gradients are the second ones; the first only showed where to look."""
    model = mlp()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.05)
    loader = loader_of(48)

    def compute(x: Tensor, y: Tensor, *batches: Any) -> None:
        loss = squared(model, x, y)
        loss.backward()
        truth.backward(loss, *batches)
        truth.gradients(model)
        if clips:
            with truth.clipping("norm", model.parameters()):
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    with tracer(model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            compute(x, y, (0, k, ids(index)))
            truth.explore()
            if closure:
                optimizer.step(lambda x=x, y=y: compute(x, y))
                optimizer.zero_grad()
            else:
                optimizer.first_step()
                compute(x, y)
                optimizer.second_step()
            truth.step(optimizer)
    truth.finish(model=model, optimizer=optimizer, loader=loader, batch=x)


def sam_clipped(truth: Truth, tracer: Tracer) -> None:
    sam(truth, tracer, clips=True)


def sam_with_closure(truth: Truth, tracer: Tracer) -> None:
    sam(truth, tracer, closure=True)


def lbfgs(truth: Truth, tracer: Tracer, make: Callable[[Any], Optimizer] | None = None) -> None:
    """LBFGS, whose closure clips: the last evaluation's gradients are those of the last move."""
    model = mlp()
    if make is None:
        optimizer: Optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    else:
        optimizer = make(model.parameters())
    loader = loader_of(20, 20)
    with tracer(model, loader=loader):
        for epoch, (index, x, y) in ((e, batch) for e in range(12) for batch in loader):
            losses: list[float] = []
            at = (epoch, 0, ids(index))

            def evaluate(x: Any = x, y: Any = y, at: Any = at, losses: Any = losses) -> Any:
                optimizer.zero_grad()
                if losses:
                    truth.explore()
                loss = squared(model, x, y)
                loss.backward()
                truth.backward(loss, *(() if losses else (at,)))
                truth.gradients(model)
                with truth.clipping("norm", model.parameters()):
                    nn.utils.clip_grad_norm_(model.parameters(), 0.35)
                losses.append(float(loss.detach()))
                return loss

            returned: Any = optimizer.step(evaluate)
            truth.keep("returned", returned)
            # All evaluations moved something, so all their losses would be as right.
            truth.step(optimizer, losses_or=tuple(losses))
    truth.finish(model=model, optimizer=optimizer, loader=loader, batch=x)


def adam_with_closure(truth: Truth, tracer: Tracer) -> None:
    """One evaluation inside `step`, as in Lightning."""
    lbfgs(truth, tracer, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))


def wrapped(
    truth: Truth,
    tracer: Tracer,
    make: Callable[[nn.Module], Any],
    evaluate: Callable[[Any, nn.Module], None] | None = None,
) -> None:
    """A plain loop around an optimizer that is not plain."""
    model = mlp()
    optimizer = make(model)
    loader = loader_of(48)
    with tracer(model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            optimizer.zero_grad()
            loss = squared(model, x, y)
            loss.backward()
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
            if evaluate is not None:
                evaluate(optimizer, model)
    truth.finish(model=model, optimizer=optimizer, loader=loader, batch=x)


def lookahead(truth: Truth, tracer: Tracer) -> None:
    def make(model: nn.Module) -> Lookahead:
        return Lookahead(torch.optim.SGD(model.parameters(), lr=0.05))

    wrapped(truth, tracer, make)


def schedule_free(truth: Truth, tracer: Tracer) -> None:
    def evaluate(optimizer: ScheduleFree, model: nn.Module) -> None:
        optimizer.swap(training=False)
        with torch.no_grad():
            truth.keep("evaluation", model(torch.ones(2, 6)))
        optimizer.swap(training=True)

    wrapped(truth, tracer, lambda m: ScheduleFree(m.parameters(), lr=0.05), evaluate)


def calls_super(truth: Truth, tracer: Tracer) -> None:
    """A subclass whose `step` calls the one of its base."""

    class Decayed(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.mul_(0.999)
            super().step()

    wrapped(truth, tracer, lambda model: Decayed(model.parameters(), lr=0.05))


def muon_and_adamw(truth: Truth, tracer: Tracer) -> None:
    """Two optimizers step on one backward, one clip over all their parameters."""
    model = mlp()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    muon = getattr(torch.optim, "Muon", torch.optim.SGD)
    optimizers = [muon(matrices, lr=1e-2), torch.optim.AdamW(rest, lr=1e-3)]
    with tracer(model):
        for _ in range(16):
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            with truth.clipping("norm", model.parameters()):
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            truth.step(*optimizers)
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()
    truth.finish(model=model, optimizers=optimizers)


def in_backward(truth: Truth, tracer: Tracer, beside: bool = False) -> None:
    """Parameters step as soon as their gradient is there; with `beside`, only the first layer's."""
    model = mlp()
    inner: dict[Any, Optimizer] = {
        p: torch.optim.SGD([p], lr=0.05) for p in (model[0] if beside else model).parameters()
    }

    def hook(parameter: Tensor) -> None:
        truth.gradients(model, inner[parameter])
        inner[parameter].step()
        inner[parameter].zero_grad()

    for parameter in inner:
        parameter.register_post_accumulate_grad_hook(hook)
    outer = [torch.optim.Adam(model[2].parameters(), lr=1e-2)] if beside else []
    loader = loader_of(48)
    with tracer(model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            loss = squared(model, x, y)
            loss.backward()
            truth.backward(loss, (0, k, ids(index)))
            if outer:
                truth.gradients(model, *outer)
            truth.step(lr=None)
            for optimizer in outer:
                optimizer.step()
                optimizer.zero_grad()
    truth.finish(model=model, optimizers=[*inner.values(), *outer], loader=loader, batch=x)


def in_backward_beside_dense(truth: Truth, tracer: Tracer) -> None:
    in_backward(truth, tracer, beside=True)


LOOPS = (
    sam,
    sam_clipped,
    sam_with_closure,
    lbfgs,
    adam_with_closure,
    lookahead,
    schedule_free,
    calls_super,
    muon_and_adamw,
    in_backward,
    in_backward_beside_dense,
)
