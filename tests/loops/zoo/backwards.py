"""Backwards that are not one `loss.backward()` a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from zoo.parts import ids, loader_of, mlp, squared
from zoo.tracing import Tracer
from zoo.truth import Truth

Compute = Callable[[nn.Sequential, Truth], None]


def each_step(
    truth: Truth, tracer: Tracer, compute: Compute, steps: int = 15, out: int = 1, **fields: Any
) -> None:
    """`compute` leaves gradients in the model, and tells the truth of its losses."""
    model = mlp(out=out)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with tracer(model):
        for _ in range(steps):
            compute(model, truth)
            truth.gradients(model)
            truth.step(optimizer, **fields)
            optimizer.step()
            optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer)


def create_graph(truth: Truth, tracer: Tracer) -> None:
    """Gradients that are replaced instead of added to, and freed in between."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        for _ in range(3):
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward(create_graph=True)
            truth.backward(loss)

    each_step(truth, tracer, compute, steps=30)


def gradient_penalty(truth: Truth, tracer: Tracer) -> None:
    """The loss holds the norm of its own gradient."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
        slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        loss = loss + 0.1 * torch.cat([slope.flatten() for slope in slopes]).square().sum()
        loss.backward()
        truth.backward(loss)

    each_step(truth, tracer, compute)


def several_losses(truth: Truth, tracer: Tracer) -> None:
    """A backward for each loss, the graph kept."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        out = model(torch.randn(5, 6))
        for loss in (out.square().mean(), out.abs().mean(), (out - 1).square().mean()):
            loss.backward(retain_graph=True)
            truth.backward(loss)

    each_step(truth, tracer, compute)


def weighted_losses(truth: Truth, tracer: Tracer) -> None:
    """Two losses and their weights in one call."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        out = model(torch.randn(5, 6))
        a, b = out.square().mean(), 100 * out.abs().mean()
        torch.autograd.backward([a, b], [torch.tensor(1.0), torch.tensor(0.01)])
        truth.backward(a + 0.01 * b)

    each_step(truth, tracer, compute)


def loss_of_shape_1(truth: Truth, tracer: Tracer) -> None:
    def compute(model: nn.Sequential, truth: Truth) -> None:
        loss = torch.zeros(1)
        loss += squared(model, torch.randn(5, 6), torch.randn(5, 1))
        loss.backward()
        truth.backward(loss)

    each_step(truth, tracer, compute)


def weighted_loss(truth: Truth, tracer: Tracer) -> None:
    """`loss.backward(weight)`: what is minimised is the product."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
        loss.backward(torch.tensor(0.25))
        truth.backward(loss * 0.25)

    each_step(truth, tracer, compute)


def maml(truth: Truth, tracer: Tracer) -> None:
    """Higher-order gradients through two steps on each of three tasks."""

    def compute(model: Any, truth: Truth) -> None:
        for _ in range(3):
            fast: dict[str, Tensor] = dict(model.named_parameters())
            x, y = torch.randn(5, 6), torch.randn(5, 1)
            for _ in range(2):
                inner = (functional_call(model, fast, (x,)) - y).square().mean()
                slopes = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
                fast = {n: p - 0.1 * s for (n, p), s in zip(fast.items(), slopes, strict=True)}
            loss = (functional_call(model, fast, (x,)) - y).square().mean() / 3
            loss.backward()
            truth.backward(loss)

    each_step(truth, tracer, compute)


def hooked(truth: Truth, tracer: Tracer) -> None:
    """The loop's own hooks on parameters scale and clamp gradients inside the backward."""

    def compute(model: Any, truth: Truth) -> None:
        if not model[0].weight._backward_hooks:
            model[0].weight.register_hook(lambda gradient: gradient * 0.5)
            model[2].weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
        loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
        loss.backward()
        truth.backward(loss)

    each_step(truth, tracer, compute)


def checkpointed(truth: Truth, tracer: Tracer) -> None:
    """Reentrant checkpointing: a backward inside the backward."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        x = torch.randn(5, 6, requires_grad=True)
        loss = model[2](checkpoint(model[:2], x, use_reentrant=True)).square().mean()
        loss.backward()
        truth.backward(loss)

    each_step(truth, tracer, compute)


def truncated(truth: Truth, tracer: Tracer, once: bool = False) -> None:
    """Backpropagation through time in pieces, on packed sequences; a step for each piece.

    All pieces are of one batch, of which the first is sure to know.
    """
    model = nn.ModuleDict({"cell": nn.LSTM(2, 5, batch_first=True), "head": nn.Linear(5, 1)})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loader = loader_of(24)
    with tracer(model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            hidden: Any = None
            for piece in range(3):
                part = x[:, 2 * piece : 2 * piece + 2].repeat(1, 3).view(-1, 3, 2)
                packed = nn.utils.rnn.pack_padded_sequence(
                    part, torch.tensor([3, 1, 2, 3]), batch_first=True, enforce_sorted=False
                )
                states, hidden = model["cell"](packed, hidden)
                hidden = tuple(h.detach() for h in hidden)
                padded, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
                loss = (model["head"](padded.mean(1)) - y).square().mean()
                loss.backward()
                batch = (0, k, ids(index))
                truth.backward(loss, *((batch,) if not (once and piece) else ()))
                if once and piece < 2:
                    continue
                truth.gradients(model)
                with truth.clipping("norm", model.parameters()):
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                truth.step(optimizer, reused=bool(piece) and not once)
                optimizer.step()
                optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer, loader=loader, batch=x)


def truncated_once(truth: Truth, tracer: Tracer) -> None:
    """The same with one step for all pieces of a batch."""
    truncated(truth, tracer, once=True)


LOOPS = (
    create_graph,
    gradient_penalty,
    several_losses,
    weighted_losses,
    loss_of_shape_1,
    weighted_loss,
    maml,
    hooked,
    checkpointed,
    truncated,
    truncated_once,
)
