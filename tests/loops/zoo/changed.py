"""What loops do to gradients themselves: clipping, rescaling, noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zoo.parts import mlp, squared
from zoo.product import by_hand
from zoo.tracing import Tracer
from zoo.truth import Truth


def changed_by_hand(
    truth: Truth,
    tracer: Tracer,
    change: Callable[[list[nn.Parameter], int], None],
    since: int = 0,
    clips: str | None = None,
) -> None:
    """Between backward and step the gradients are changed, from step `since` on.

    `clips` is the kind of clipping that the change is; else the norm is the one after it.
    """
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    parameters = list(model.parameters())
    with tracer(model):
        for k in range(20):
            loss = F.mse_loss(model(torch.randn(5, 6)), torch.randn(5, 1), reduction="sum")
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            if k >= since and clips is not None:
                with truth.clipping(f"own {clips}", parameters):
                    change(parameters, k)
            elif k >= since:
                change(parameters, k)
                truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer)


def divided_by_tokens(truth: Truth, tracer: Tracer) -> None:
    """Summed losses; the gradients are divided by the number of tokens, which varies."""

    def divide(parameters: list[nn.Parameter], k: int) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.div_(200 + 37 * k % 101)

    changed_by_hand(truth, tracer, divide)


def divided_by_ranks(truth: Truth, tracer: Tracer) -> None:
    """Gradients are divided by a world size, all alike, in one call."""

    def divide(parameters: list[nn.Parameter], _: int) -> None:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 0.125)

    changed_by_hand(truth, tracer, divide)


def noise_added(truth: Truth, tracer: Tracer) -> None:
    """Noise on the gradients, which sometimes makes them smaller."""

    def add(parameters: list[nn.Parameter], _: int) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.add_(torch.randn_like(parameter.grad), alpha=0.3)

    changed_by_hand(truth, tracer, add)


def clipped_by_hand_later(truth: Truth, tracer: Tracer) -> None:
    """Clipping of their own that begins when the first steps are over."""
    changed_by_hand(truth, tracer, lambda ps, _: by_hand(ps, 1.0), since=12, clips="norm")


def clamped_by_hand(truth: Truth, tracer: Tracer) -> None:
    def clamp(parameters: list[nn.Parameter], _: int) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.clamp_(-0.5, 0.5)

    changed_by_hand(truth, tracer, clamp, clips="value")


def clipped_to_infinity(truth: Truth, tracer: Tracer) -> None:
    """`clip_grad_norm_(..., inf)` is how people measure the norm."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with tracer(model):
        for _ in range(40):
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
            truth.step(optimizer)
            optimizer.step()
            optimizer.zero_grad()

    def no_findings(seen: Any) -> str | None:
        found = [e.message for e in seen.events if e.kind == "clip"]
        return f"a measurement is judged as clipping: {found}" if found else None

    truth.checks.append(no_findings)
    truth.finish(model=model, optimizer=optimizer)


def scaled_by_hand(truth: Truth, tracer: Tracer) -> None:
    """A loss scale without a scaler: the loss is what backward got, the norm what SGD got."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with tracer(model):
        for _ in range(15):
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1)) * 1024
            loss.backward()
            truth.backward(loss)
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(1 / 1024)
            truth.gradients(model)
            with truth.clipping("norm", model.parameters()):
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            truth.step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer)


def clipped_in_hook(truth: Truth, tracer: Tracer) -> None:
    """The optimizer's own hook clips, when its step has begun."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def clip(*_: Any) -> None:
        with truth.clipping("norm", model.parameters()):
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)

    optimizer.register_step_pre_hook(clip)
    with tracer(model):
        for _ in range(15):
            optimizer.zero_grad()
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            optimizer.step()
            truth.step(optimizer)
    truth.finish(model=model, optimizer=optimizer)


def flat_gradients(truth: Truth, tracer: Tracer) -> None:
    """All gradients are views of one buffer, which is clipped and zeroed as a whole."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    parameters = list(model.parameters())
    buffer = torch.zeros(sum(p.numel() for p in parameters))
    for parameter, view in zip(
        parameters, buffer.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = view.view_as(parameter)
    with tracer(model):
        for _ in range(15):
            buffer.zero_()
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            with truth.clipping("own norm", parameters):
                buffer.mul_((0.5 / (buffer.norm() + 1e-6)).clamp(max=1.0))
            truth.step(optimizer)
            optimizer.step()
    truth.finish(model=model, optimizer=optimizer)


def clipped_through_data(truth: Truth, tracer: Tracer) -> None:
    """Old code clips `p.grad.data`, which leaves no trace on the gradient.

    The norm can be right, if it is read in time; that there was clipping may stay unknown.
    """
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with tracer(model):
        for _ in range(15):
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.data.clamp_(-0.05, 0.05)
            truth.step(optimizer, unsure={"clip"})
            optimizer.step()
            optimizer.zero_grad()
    truth.quiet = False
    truth.finish(model=model, optimizer=optimizer)


LOOPS = (
    divided_by_tokens,
    divided_by_ranks,
    noise_added,
    clipped_by_hand_later,
    clamped_by_hand,
    clipped_to_infinity,
    scaled_by_hand,
    clipped_in_hook,
    flat_gradients,
    clipped_through_data,
)
