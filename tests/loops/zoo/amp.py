"""Loss scaling beyond one scaler, one optimizer and one way to unscale."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import OptState

from zoo.parts import ids, loader_of, mlp, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


def fused_overflow(truth: Truth, tracer: Tracer) -> None:
    """A fused optimizer is called although the scaler found an overflow, and does not move."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    loader = loader_of(32)
    with tracer(model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            loss = squared(model, x, y) * (float("inf") if k == 3 else 1.0)
            scaler.scale(loss).backward()
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(model, scale=scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
            truth.step(optimizer, skipped=k == 3)
            optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer, loader=loader, scaler=scaler, batch=x)


def scaled(truth: Truth, tracer: Tracer, scaler: Any, unscale: int) -> None:
    """One scaler, two optimizers; `unscale_` for some of them before the steps."""
    model = mlp()
    optimizers = [
        torch.optim.SGD(model[0].parameters(), lr=0.05),
        torch.optim.AdamW(model[2].parameters(), lr=1e-2),
    ]
    loader = loader_of(48)
    with tracer(model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            loss = squared(model, x, y) * (float("inf") if k == 4 else 1.0)
            scaler.scale(loss).backward()
            truth.backward(loss, (0, k, ids(index)))
            scale = scaler.get_scale()
            truth.gradients(model, scale=scale)
            for optimizer in optimizers[:unscale]:
                scaler.unscale_(optimizer)
            if unscale == 2:
                with truth.clipping("norm", model.parameters()):
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            truth.step(*optimizers, skipped=k == 4)
            for optimizer in optimizers:
                optimizer.zero_grad()
    truth.finish(model=model, optimizers=optimizers, loader=loader, scaler=scaler, batch=x)


def unscaled_one_of_two(truth: Truth, tracer: Tracer) -> None:
    scaled(truth, tracer, torch.amp.GradScaler("cpu", init_scale=2.0**10), unscale=1)


class OwnScaler(torch.amp.GradScaler):
    """Scales and unscales with code of its own, as FSDP's ShardedGradScaler does."""

    def scale(self, outputs: Any) -> Any:
        """Never calls the base's."""
        if self._scale is None:
            self._lazy_init_scale_growth_tracker(outputs.device)
        assert self._scale is not None
        return (outputs * self._scale).type(outputs.dtype)

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Neither here."""
        assert self._scale is not None
        found = torch.zeros(())
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, 1 / self._scale)
        state = self._per_optimizer_states[id(optimizer)]
        state["found_inf_per_device"] = {torch.device("cpu"): found}
        state["stage"] = OptState.UNSCALED


def own_scaler(truth: Truth, tracer: Tracer) -> None:
    scaled(truth, tracer, OwnScaler("cpu", init_scale=2.0**10), unscale=2)


LOOPS = (
    fused_overflow,
    unscaled_one_of_two,
    own_scaler,
)
