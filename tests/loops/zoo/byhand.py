"""Loops that say themselves where a step ends, or should."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad_and_value

from zoo.homemade import Masters, Unknown
from zoo.parts import ids, loader_of, mlp, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


def unknown(truth: Truth, tracer: Tracer, told: bool = True, clips: bool = False) -> None:
    """An optimizer that torch does not know; `trace.step()` says where steps end."""
    model = mlp()
    optimizer = Unknown(model.parameters(), lr=0.02)
    loader = loader_of(60)
    with tracer(model, loader=loader) as trace:
        for k, (index, x, y) in enumerate(loader):
            loss = squared(model, x, y)
            loss.backward()
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(model)
            if clips:
                with truth.clipping("norm", model.parameters()):
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            truth.step()
            if told:
                trace.step()
    if not told:
        truth.unseen = True
        truth.note("trace.step()")
    truth.finish(model=model, optimizer=optimizer, loader=loader, batch=x)


def unknown_clipped(truth: Truth, tracer: Tracer) -> None:
    unknown(truth, tracer, clips=True)


def unknown_untold(truth: Truth, tracer: Tracer) -> None:
    unknown(truth, tracer, told=False)


def masters(truth: Truth, tracer: Tracer) -> None:
    """A bfloat16 model; AdamW holds float32 copies, and clips their gradients."""
    model = mlp().bfloat16()
    optimizer = Masters(model, lambda copies: torch.optim.AdamW(copies, lr=1e-2))
    with tracer(model) as trace:
        for _ in range(15):
            loss = model(torch.randn(5, 6).bfloat16()).square().mean()
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step()
            optimizer.step()
            trace.step()
    truth.finish(model=model, optimizer=optimizer.optimizer)


def marked_as_well(truth: Truth, tracer: Tracer) -> None:
    """`trace.step()` after an optimizer that torch knows marks the same step, not another."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with tracer(model) as trace:
        for _ in range(15):
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            trace.step()
    truth.finish(model=model, optimizer=optimizer)


@torch.no_grad()
def zeroth_order(truth: Truth, tracer: Tracer) -> None:
    """MeZO: two forwards without gradients tell along which direction to move."""
    model = mlp()
    loader = loader_of(48)
    with tracer(model) as trace:
        for k, (index, x, y) in enumerate(trace.batches(loader)):
            directions = [torch.randn_like(p) for p in model.parameters()]
            losses = []
            for sign in (1e-3, -2e-3, 1e-3):
                torch._foreach_add_(list(model.parameters()), directions, alpha=sign)
                losses.append(squared(model, x, y))
            slope = float(losses[0] - losses[1]) / 2e-3
            torch._foreach_add_(list(model.parameters()), directions, alpha=-0.01 * slope)
            truth.backward(losses[2], (0, k, ids(index)))
            truth.step(losses=None)
            trace.log(loss=losses[2])
            trace.step()
    truth.quiet = False  # that there are no gradients may be said
    truth.finish(model=model, loader=loader, batch=x)


@torch.no_grad()
def evolution(truth: Truth, tracer: Tracer) -> None:
    """Evolution strategies on a fixed batch: nothing is delivered, computed backwards or logged."""
    model = mlp()
    x, y = torch.randn(8, 6), torch.randn(8, 1)
    with tracer(model) as trace:
        for _ in range(12):
            best = torch.nn.utils.parameters_to_vector(model.parameters())
            tries = best + 0.1 * torch.randn(6, len(best))
            scores = []
            for each in tries:
                torch.nn.utils.vector_to_parameters(each, model.parameters())
                scores.append(squared(model, x, y))
            weights = torch.stack(scores).neg().softmax(0)
            torch.nn.utils.vector_to_parameters(weights @ tries, model.parameters())
            loss = squared(model, x, y)
            truth.backward(loss)
            truth.step(losses=None)
            trace.log(loss=loss)
            trace.step()
    truth.quiet = False
    truth.finish(model=model)


def functional(truth: Truth, tracer: Tracer) -> None:
    """`torch.func.grad`: gradients that no parameter ever holds."""
    model = mlp()
    x, y = torch.randn(5, 6), torch.randn(5, 1)

    def compute(parameters: Any) -> Any:
        return (functional_call(model, parameters, (x,)) - y).square().mean()

    with tracer(model) as trace:
        for _ in range(12):
            slopes, loss = grad_and_value(compute)(dict(model.named_parameters()))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.sub_(slopes[name], alpha=0.05)
            truth.backward(loss)
            truth.step(losses=None)
            trace.log(loss=loss.detach())
            trace.step()
    truth.quiet = False  # that there are no gradients may be said
    truth.finish(model=model)


LOOPS = (
    unknown,
    unknown_clipped,
    unknown_untold,
    masters,
    marked_as_well,
    zeroth_order,
    evolution,
    functional,
)
