"""Work that does not end in a step: dropped batches, evaluation, gradients that are thrown away."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from zoo.parts import Samples, Training, ids, loader_of, mlp, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


def skipped_before_forward(truth: Truth, tracer: Tracer) -> None:
    """A `continue` before the forward: the batch was delivered, and nothing came of it."""
    run, loader = Training(truth), loader_of(80)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            if k % 3 == 1:
                continue
            run.step(x, y, (0, k, ids(index)))
    truth.may_lack_batches(*range(1, len(truth.steps), 2))
    run.finish(loader=loader, batch=x)


def skipped_after_forward(truth: Truth, tracer: Tracer) -> None:
    """A `continue` between forward and backward, as where a loss is NaN."""
    run, loader = Training(truth), loader_of(80)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            loss = squared(run.model, x, y)
            if k % 4 == 1:
                continue
            loss.backward()
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(run.model)
            run.use()
    truth.may_lack_batches(*range(1, len(truth.steps), 3))
    run.finish(loader=loader, batch=x)


def nan_batch(truth: Truth, tracer: Tracer) -> None:
    """A batch whose gradients are not finite is dropped: `zero_grad(); continue`."""
    run, data = Training(truth), Samples(120)
    x = data.tensors[1].clone()
    x[100:104] = float("nan")
    loader = DataLoader(TensorDataset(data.tensors[0], x, data.tensors[2]), batch_size=4)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            loss = squared(run.model, x, y)
            loss.backward()
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(run.model)
            with truth.clipping("norm", run.model.parameters()):
                norm = nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            if not torch.isfinite(norm):
                truth.discard()
                run.optimizer.zero_grad()
                continue
            run.use()
    run.finish(loader=loader, batch=x)


def outliers(truth: Truth, tracer: Tracer) -> None:
    """Steps whose norm is large are skipped; the gradients go with the next `zero_grad`."""
    run, loader = Training(truth), loader_of(80)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            run.optimizer.zero_grad()
            loss = squared(run.model, x, y) * (50 if k in (6, 7, 13) else 1)
            loss.backward()
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(run.model)
            gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
            if float(torch.stack([gradient.norm() for gradient in gradients]).norm()) > 10:
                truth.discard()
                continue
            truth.step(run.optimizer)
            run.optimizer.step()
    run.finish(loader=loader, batch=x)


def leftovers(truth: Truth, tracer: Tracer) -> None:
    """Accumulation over 3 of 11 batches: what is left of an epoch is thrown away at the next."""
    run, loader = Training(truth), loader_of(44)
    with tracer(run.model, loader=loader):
        for epoch in range(3):
            if epoch:
                truth.discard()
            run.optimizer.zero_grad()
            for k, (index, x, y) in enumerate(loader):
                loss = squared(run.model, x, y) / 3
                loss.backward()
                truth.backward(loss, (epoch, k, ids(index)))
                truth.gradients(run.model)
                if k % 3 == 2:
                    run.use()
    run.finish(loader=loader, batch=x)


def evaluation_between(truth: Truth, tracer: Tracer) -> None:
    """Evaluation on another loader, between the micro-batches of one step."""
    run, loader, other = Training(truth), loader_of(48), loader_of(12)
    with tracer(run.model, loader=[loader, other]):
        for k, (index, x, y) in enumerate(loader):
            loss = squared(run.model, x, y) / 2
            loss.backward()
            truth.backward(loss, (0, k, ids(index)))
            if k % 2 == 0:
                run.model.eval()
                with torch.no_grad():
                    for _, a, b in other:
                        truth.keep("evaluation", squared(run.model, a, b))
                run.model.train()
                continue
            truth.gradients(run.model)
            run.use()
    run.finish(loaders=[loader, other], batch=x)


def accuracy_pass(truth: Truth, tracer: Tracer) -> None:
    """After each epoch the training loader is gone through again, without gradients."""
    run, loader = Training(truth), loader_of(20, shuffle=True)
    with tracer(run.model, loader=loader):
        for _ in range(3):
            for k, (index, x, y) in enumerate(loader):
                run.step(x, y, (None, k, ids(index)))
            with torch.no_grad():
                for _, x, y in loader:
                    truth.keep("accuracy", squared(run.model, x, y))
    run.finish(loader=loader, batch=x)


def careless_evaluation(truth: Truth, tracer: Tracer) -> None:
    """Evaluation that forgot `no_grad`: its forwards have gradients, and no backward."""
    run, loader, other = Training(truth), loader_of(20), loader_of(12)
    with tracer(run.model, loader=[loader, other]):
        for epoch in range(3):
            for k, (index, x, y) in enumerate(loader):
                run.step(x, y, (epoch, k, ids(index)))
            run.model.eval()
            for _, x, y in other:
                truth.keep("evaluation", squared(run.model, x, y))
            run.model.train()
    run.finish(loaders=[loader, other], batch=x)


def peeked(truth: Truth, tracer: Tracer) -> None:
    """`next(iter(loader))` to see what a batch looks like, and a forward to try it."""
    run, loader = Training(truth), loader_of(40)
    with tracer(run.model, loader=loader):
        _, x, y = next(iter(loader))
        truth.keep("tried", squared(run.model, x, y))
        for k, (index, x, y) in enumerate(loader):
            run.step(x, y, (None, k, ids(index)))
    run.finish(loader=loader, batch=x)


def fisher(truth: Truth, tracer: Tracer) -> None:
    """EWC's Fisher matrix: many backwards whose gradients are read and thrown away."""
    run = Training(truth)
    with tracer(run.model):
        for k in range(24):
            for _ in range(6 if k == 16 else 0):
                run.model.zero_grad()
                loss = squared(run.model, torch.randn(1, 6), torch.randn(1, 1)) * 40
                loss.backward()
                truth.backward(loss)
                truth.gradients(run.model)
                truth.explore()
            run.optimizer.zero_grad()
            run.step(torch.randn(5, 6), torch.randn(5, 1))
    run.finish()


def attack(truth: Truth, tracer: Tracer) -> None:
    """Adversarial training: two backwards to find the inputs, then the step's own."""
    run, loader = Training(truth), loader_of(48)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            x = x.requires_grad_()
            for i in range(2):
                loss = squared(run.model, x, y)
                loss.backward()
                truth.backward(loss, *(() if i else ((0, k, ids(index)),)))
                truth.gradients(run.model)
                truth.explore()
                assert x.grad is not None
                x = (x + 0.1 * x.grad.sign()).detach().requires_grad_()
                run.model.zero_grad()
            run.step(x.detach(), y)
    run.finish(loader=loader)


def attack_on_inputs(truth: Truth, tracer: Tracer) -> None:
    """The same with `backward(inputs=[x])`, which leaves the parameters alone."""
    run, loader = Training(truth), loader_of(48)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            x.requires_grad_()
            squared(run.model, x, y).backward(inputs=[x])
            assert x.grad is not None
            x = (x + 0.1 * x.grad.sign()).detach()
            run.step(x, y, (0, k, ids(index)))
    run.finish(loader=loader)


def distilled(truth: Truth, tracer: Tracer) -> None:
    """The teacher, which is not traced, learns too, between the student's micro-batches."""
    run, teacher = Training(truth), mlp()
    taught = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    with tracer(run.model):
        for k in range(24):
            x, y = torch.randn(5, 6), torch.randn(5, 1)
            loss = F.mse_loss(run.model(x), teacher(x).detach()) / 2
            loss.backward()
            truth.backward(loss)
            taught.zero_grad()
            squared(teacher, x, y).backward()
            nn.utils.clip_grad_norm_(teacher.parameters(), 0.1)
            taught.step()
            if k % 2:
                truth.gradients(run.model)
                run.use()
    run.finish(teacher=teacher, taught=taught)


LOOPS = (
    skipped_before_forward,
    skipped_after_forward,
    nan_batch,
    outliers,
    leftovers,
    evaluation_between,
    accuracy_pass,
    careless_evaluation,
    peeked,
    fisher,
    attack,
    attack_on_inputs,
    distilled,
)
