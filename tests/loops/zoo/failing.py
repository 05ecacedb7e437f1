"""Errors in the middle of a step that the loop survives."""

from __future__ import annotations

from typing import Any

import torch

from zoo.parts import Training, ids, loader_of, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


class OutOfMemoryError(RuntimeError):
    """What a real device would raise."""


class Failing(torch.optim.SGD):
    """Raises at some steps, before it has moved anything."""

    count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        if self.count in (4, 9):
            raise OutOfMemoryError
        super().step()


def caught(truth: Truth, tracer: Tracer, inside: bool = False) -> None:
    """An error in the forward, or `inside` the backward, is caught and the batch dropped."""
    run, loader = Training(truth), loader_of(60)

    def fail(*_: Any) -> None:
        raise OutOfMemoryError

    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            try:
                hidden = run.model[:2](x)
                if k in (3, 11):
                    hidden.register_hook(fail) if inside else fail()
                loss = (run.model[2](hidden) - y).square().mean()
                loss.backward()
            except OutOfMemoryError:
                truth.explored += inside  # half of the gradients were there
                run.optimizer.zero_grad()
                continue
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(run.model)
            run.use()
    truth.may_lack_batches(3, 10)
    run.finish(loader=loader, batch=x)


def caught_in_backward(truth: Truth, tracer: Tracer) -> None:
    caught(truth, tracer, inside=True)


def caught_in_step(truth: Truth, tracer: Tracer) -> None:
    """The optimizer itself fails: its gradients were not used."""
    run, loader = Training(truth), loader_of(60)
    run.optimizer = Failing(run.model.parameters(), lr=0.05)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            loss = squared(run.model, x, y)
            loss.backward()
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(run.model)
            try:
                run.optimizer.step()
            except OutOfMemoryError:
                truth.discard()
            else:
                truth.step(run.optimizer)
            run.optimizer.zero_grad()
    run.finish(loader=loader, batch=x)


LOOPS = (
    caught,
    caught_in_backward,
    caught_in_step,
)
