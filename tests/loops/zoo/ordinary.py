"""The commonest loops, and what people do to optimizers and gradients in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.parts import Samples, Training, ids, loader_of, mlp, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


def plain(
    truth: Truth,
    tracer: Tracer,
    make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    zero: Callable[[torch.optim.Optimizer, nn.Module], None] = lambda o, m: o.zero_grad(),
    **options: Any,
) -> None:
    """Two epochs with clipping."""
    model = mlp()
    optimizer = make(model.parameters(), lr=0.05, **options)
    loader = loader_of(24, shuffle=True)
    with tracer(model, loader=loader):
        for epoch in range(2):
            for k, (index, x, y) in enumerate(loader):
                zero(optimizer, model)
                loss = squared(model, x, y)
                loss.backward()
                truth.backward(loss, (epoch, k, ids(index)))
                truth.gradients(model)
                with truth.clipping("norm", model.parameters()):
                    nn.utils.clip_grad_norm_(model.parameters(), 0.8)
                truth.step(optimizer)
                optimizer.step()
    truth.finish(model=model, optimizer=optimizer, loader=loader, batch=x)


def zeroed_in_place(truth: Truth, tracer: Tracer) -> None:
    plain(truth, tracer, zero=lambda o, m: o.zero_grad(set_to_none=False))


def zeroed_one_by_one(truth: Truth, tracer: Tracer) -> None:
    def zero(_: torch.optim.Optimizer, model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    plain(truth, tracer, zero=zero)


def gradients_removed(truth: Truth, tracer: Tracer) -> None:
    def zero(_: torch.optim.Optimizer, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = None

    plain(truth, tracer, zero=zero)


def foreach_adamw(truth: Truth, tracer: Tracer) -> None:
    plain(truth, tracer, torch.optim.AdamW, foreach=True)


def fused_adamw(truth: Truth, tracer: Tracer) -> None:
    plain(truth, tracer, torch.optim.AdamW, fused=True)


def scheduled(truth: Truth, tracer: Tracer) -> None:
    """A learning rate that changes at every step, in two groups."""
    model = mlp()
    groups: list[Any] = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": [*model[2].parameters()]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.05], total_steps=13)
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
            scheduler.step()
    truth.finish(model=model, optimizer=optimizer, loader=loader, batch=x)


def unfrozen(truth: Truth, tracer: Tracer) -> None:
    """The body is frozen, joins the optimizer after five steps, and is frozen again later."""
    model = mlp()
    body, head = list(model[0].parameters()), list(model[2].parameters())
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(head, lr=0.05)
    with tracer(model):
        for k in range(15):
            if k == 5:
                model[0].requires_grad_(True)
                optimizer.add_param_group({"params": body, "lr": 0.01})
            if k == 10:
                model[0].requires_grad_(False)
            optimizer.zero_grad()
            loss = squared(model, torch.randn(4, 6), torch.randn(4, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
    truth.finish(model=model, optimizer=optimizer)


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.embedding(tokens)).tanh())
        return logits


def tied_weights(truth: Truth, tracer: Tracer) -> None:
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with tracer(model):
        for _ in range(10):
            tokens = torch.randint(0, 12, (4, 5))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
    truth.finish(model=model, optimizer=optimizer)


def sparse_embedding(truth: Truth, tracer: Tracer) -> None:
    """SparseAdam for the embedding, Adam for the rest."""
    model = nn.ModuleDict({"table": nn.Embedding(20, 6, sparse=True), "head": nn.Linear(6, 1)})
    sparse = torch.optim.SparseAdam(list(model["table"].parameters()), lr=1e-2)
    dense = torch.optim.Adam(model["head"].parameters(), lr=1e-2)
    with tracer(model):
        for _ in range(12):
            sparse.zero_grad()
            dense.zero_grad()
            tokens = torch.randint(0, 20, (4, 3))
            loss = (model["head"](model["table"](tokens).mean(1)) - 1).square().mean()
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(sparse, dense)
            sparse.step()
            dense.step()
    truth.finish(model=model, optimizers=[sparse, dense])


def divisor_told(truth: Truth, tracer: Tracer) -> None:
    """Accumulation whose divisor the trace is told: losses are those before the division."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader = loader_of(40)
    with tracer(model, loader=loader) as trace:
        trace.divide(2)
        for k, (index, x, y) in enumerate(loader):
            loss = squared(model, x, y)
            (loss / 2).backward()
            truth.backward(loss, (0, k, ids(index)))
            if k % 2:
                truth.gradients(model)
                truth.step(optimizer)
                optimizer.step()
                optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer, loader=loader, batch=x)


def logged(truth: Truth, tracer: Tracer) -> None:
    """Values are logged after the step; a step's own come with it."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = Samples(40)
    with tracer(model) as trace:
        for k in range(10):
            _, x, y = data[4 * k : 4 * k + 4]
            loss = squared(model, x, y)
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            trace.log(k=float(k))

    def in_its_step(seen: Any) -> str | None:
        found = [record.logged.get("k") for record in seen.steps]
        return None if found == list(range(10)) else f"logged {found}"

    truth.checks.append(in_its_step)
    truth.finish(model=model, optimizer=optimizer)


def lr_as_tensor(truth: Truth, tracer: Tracer) -> None:
    def make(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=torch.tensor(lr), foreach=False)

    plain(truth, tracer, make)


def across_epochs(truth: Truth, tracer: Tracer) -> None:
    """Accumulation that does not care where an epoch ends."""
    run, loader, count = Training(truth), loader_of(20), 0
    with tracer(run.model, loader=loader):
        for epoch in range(3):
            for k, (index, x, y) in enumerate(loader):
                loss = squared(run.model, x, y) / 2
                loss.backward()
                truth.backward(loss, (epoch, k, ids(index)))
                count += 1
                if count % 2 == 0:
                    truth.gradients(run.model)
                    run.use()
    run.finish(loader=loader, batch=x)


LOOPS = (
    plain,
    zeroed_in_place,
    zeroed_one_by_one,
    gradients_removed,
    foreach_adamw,
    fused_adamw,
    scheduled,
    unfrozen,
    tied_weights,
    sparse_embedding,
    divisor_told,
    logged,
    lr_as_tensor,
    across_epochs,
)
