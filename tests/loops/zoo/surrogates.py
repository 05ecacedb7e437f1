"""Backwards that do not begin at the loss, and gradients that no backward put there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zoo.backwards import each_step
from zoo.parts import squared
from zoo.tracing import Tracer
from zoo.truth import Truth


def gradient_edge(truth: Truth, tracer: Tracer) -> None:
    """The loss itself is not given to the backward: it may be missing, and a note says so."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
        edge = torch.autograd.graph.get_gradient_edge(loss)
        truth.backward(loss)
        del loss
        torch.autograd.backward(edge, grad_tensors=(torch.ones(()),))

    truth.note("loss")
    each_step(truth, tracer, compute, lacks={"loss"})


def vector_backward(truth: Truth, tracer: Tracer) -> None:
    """A backward from a vector with a gradient: no number that it minimises is known."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        out = model(torch.randn(5, 6))
        out.backward(2 * out.detach() / len(out))
        truth.backward(out.square().mean())

    truth.note("loss")
    each_step(truth, tracer, compute, lacks={"loss"})


def gradients_assigned(truth: Truth, tracer: Tracer) -> None:
    """`autograd.grad`, and the gradients put into place by hand."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        for parameter, slope in zip(model.parameters(), slopes, strict=True):
            parameter.grad = slope
        truth.backward(loss)

    truth.note("loss", "backward")
    each_step(truth, tracer, compute, lacks={"loss"})


def gradcache(truth: Truth, tracer: Tracer, logs: bool = False) -> None:
    """The loss stops at cached representations; surrogates, which are no losses, go on."""
    model = nn.Linear(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with tracer(model) as trace:
        for _ in range(15):
            chunks = [torch.randn(4, 6) for _ in range(3)]
            with torch.no_grad():
                cached = torch.cat([model(chunk) for chunk in chunks])
            cached.requires_grad_()
            loss = F.cross_entropy(cached @ cached.T, torch.arange(12))
            loss.backward()
            truth.backward(loss)
            assert cached.grad is not None
            for chunk, slope in zip(chunks, cached.grad.split(4), strict=True):
                torch.dot(model(chunk).flatten(), slope.flatten()).backward()
            if logs:
                trace.log(loss=loss)
            truth.gradients(model)
            truth.step(optimizer, **({"losses": None} if logs else {"lacks": {"loss"}}))
            optimizer.step()
            optimizer.zero_grad()
    truth.note("loss")
    if logs:
        truth.words.clear()
    truth.finish(model=model, optimizer=optimizer)


def gradcache_logged(truth: Truth, tracer: Tracer) -> None:
    """The loop says what the loss is."""
    gradcache(truth, tracer, logs=True)


def surgery(truth: Truth, tracer: Tracer, mean: bool = False) -> None:
    """PCGrad: a backward for each task, gradients taken off, merged and put back.

    That the losses belong to the merged gradients cannot be seen: they may be missing.
    """

    def compute(model: nn.Sequential, truth: Truth) -> None:
        parameters = list(model.parameters())
        out = model(torch.randn(9, 6))
        losses = [3 * (out[:, 0] - 1).square().mean(), (out[:, 1] + 1).square().mean()]
        found: Any = []
        for loss in losses:
            model.zero_grad()
            loss.backward(retain_graph=True)
            found.append([p.grad.clone() for p in parameters if p.grad is not None])
        a, b = (torch.cat([slope.flatten() for slope in slopes]) for slopes in found)
        overlap = (a @ b).clamp(max=0)
        merged = a - overlap / b.norm() ** 2 * b + b - overlap / a.norm() ** 2 * a
        merged = merged / 2 if mean else merged
        model.zero_grad()
        del found
        sizes = [p.numel() for p in parameters]
        for parameter, slope in zip(parameters, merged.split(sizes), strict=True):
            parameter.grad = slope.view_as(parameter).clone()
        truth.explored += 2
        for loss in losses:
            truth.backward(loss)

    truth.quiet = False
    each_step(truth, tracer, compute, steps=30, out=2, lacks={"loss"})


def surgery_mean(truth: Truth, tracer: Tracer) -> None:
    """The same, with the mean of the merged gradients."""
    surgery(truth, tracer, mean=True)


LOOPS = (
    gradient_edge,
    vector_backward,
    gradients_assigned,
    gradcache,
    gradcache_logged,
    surgery,
    surgery_mean,
)
