"""Steps that are seldom written, and legal: odd is the order, the owner, or the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.utils import parametrizations
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from zoo.backwards import each_step
from zoo.parts import Training, ids, loader_of, mlp, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


class WithLoss(nn.Module):
    """Returns a loss and more, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.body(x)
        return (out - y).square().mean(), {"out": out, "hidden": [out, out]}


def loss_in_a_tuple(truth: Truth, tracer: Tracer) -> None:
    model = WithLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True)
    with tracer(model):
        for _ in range(15):
            loss, _ = model(torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer)


def backward_twice(truth: Truth, tracer: Tracer) -> None:
    """The same loss goes backward twice."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
        for keep in (True, False):
            loss.backward(retain_graph=keep)
            truth.backward(loss)

    each_step(truth, tracer, compute)


def summed_forwards(truth: Truth, tracer: Tracer) -> None:
    """One backward for the sum of several forwards."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        loss = sum(squared(model, torch.randn(5, 6), torch.randn(5, 1)) for _ in range(4))
        assert isinstance(loss, Tensor)
        loss.backward()
        truth.backward(loss)

    each_step(truth, tracer, compute)


def penalty_on_inputs(truth: Truth, tracer: Tracer) -> None:
    """R1: the loss holds the slope of the output along its inputs."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        x = torch.randn(5, 6, requires_grad=True)
        out = model(x)
        [slope] = torch.autograd.grad(out.sum(), x, create_graph=True)
        loss = out.square().mean() + 0.5 * slope.square().sum(1).mean()
        loss.backward()
        truth.backward(loss)

    each_step(truth, tracer, compute)


def functional_gradients(truth: Truth, tracer: Tracer) -> None:
    """`torch.func.grad` computes, the loop assigns, torch's optimizer steps: no backward."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        x, y = torch.randn(5, 6), torch.randn(5, 1)
        parameters = {name: p.detach() for name, p in model.named_parameters()}

        def loss_of(parameters: dict[str, Tensor]) -> Tensor:
            error: Tensor = (functional_call(model, parameters, (x,)) - y).square().mean()
            return error

        slopes = grad(loss_of)(parameters)
        for name, parameter in model.named_parameters():
            parameter.grad = slopes[name]
        truth.backward(loss_of(parameters))

    truth.note("loss", "backward")
    each_step(truth, tracer, compute, lacks={"loss"})


def checkpointed_anew(truth: Truth, tracer: Tracer) -> None:
    """Checkpointing without reentrance: the forward runs again inside the backward."""

    def compute(model: nn.Sequential, truth: Truth) -> None:
        loss = model[2](checkpoint(model[:2], torch.randn(5, 6), use_reentrant=False))
        loss = loss.square().mean()
        loss.backward()
        truth.backward(loss)

    each_step(truth, tracer, compute)


def by_depth(truth: Truth, tracer: Tracer) -> None:
    """Stochastic depth: a layer is left out at some steps and has no gradient then."""
    model = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with tracer(model):
        for k in range(20):
            x = model[0](torch.randn(5, 6)).tanh()
            if k % 3:
                x = x + model[1](x).tanh()
            loss = model[2](x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            with truth.clipping("norm", model.parameters()):
                nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 0.1)
            truth.step(optimizer)
            optimizer.step()
    truth.finish(model=model, optimizer=optimizer)


def parametrized(truth: Truth, tracer: Tracer) -> None:
    """Spectral and weight norm: the parameters are behind the weights, and change in forwards."""
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 8)),
        nn.Tanh(),
        parametrizations.weight_norm(nn.Linear(8, 1)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with tracer(model):
        for _ in range(15):
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer)


def toggled(truth: Truth, tracer: Tracer) -> None:
    """Layers are frozen in turns, one optimizer holds all of them."""
    run = Training(truth)
    with tracer(run.model):
        for k in range(18):
            for i in (0, 2):
                layer: nn.Module = run.model[i]
                layer.requires_grad_((k // 3) % 2 == i // 2)
            run.step(torch.randn(5, 6), torch.randn(5, 1))
        run.model.requires_grad_(True)
    run.finish()


def stepped_twice(truth: Truth, tracer: Tracer) -> None:
    """Two steps on the gradients of one backward: the second has no loss of its own."""
    run = Training(truth)
    with tracer(run.model):
        for _ in range(12):
            loss = squared(run.model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            for _ in range(2):
                truth.gradients(run.model)
                truth.step(run.optimizer)
                run.optimizer.step()
            run.optimizer.zero_grad()
    truth.note("loss", "backward")
    run.finish()


def retried(truth: Truth, tracer: Tracer) -> None:
    """Out of memory inside a backward: the same batch again, in halves, after `zero_grad`."""
    run, loader = Training(truth), loader_of(48, shuffle=True)
    fails = [False]

    def allocate(gradient: Tensor) -> None:
        if fails[0]:
            raise torch.OutOfMemoryError("out of memory")

    hook = next(run.model.parameters()).register_hook(allocate)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            fails[0] = k % 4 == 3
            try:
                loss = squared(run.model, x, y)
                loss.backward()
                truth.backward(loss, (0, k, ids(index)))
            except torch.OutOfMemoryError:
                run.optimizer.zero_grad()
                fails[0] = False
                for part in (slice(0, 2), slice(2, 4)):
                    loss = squared(run.model, x[part], y[part]) / 2
                    loss.backward()
                    truth.backward(loss, *(() if part.start else ((0, k, ids(index)),)))
            truth.gradients(run.model)
            run.use()
    hook.remove()
    truth.quiet = False
    run.finish(loader=loader, batch=x)


def two_scalers(truth: Truth, tracer: Tracer) -> None:
    """Each of two models has a scaler of its own; one of them overflows."""
    models: dict[str, nn.Module] = {"one": mlp(), "two": mlp()}
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in models.values()]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**n) for n in (8, 12)]
    with tracer(models):
        for _ in range(12):
            x, y = torch.randn(5, 6), torch.randn(5, 1)
            parts = zip(models.items(), optimizers, scalers, strict=True)
            for (name, model), optimizer, scaler in parts:
                loss = squared(model, x, y)
                scaler.scale(loss).backward()
                truth.backward(loss)
                truth.gradients({name: model}, scale=scaler.get_scale())
                if name == "two":
                    truth.step(*optimizers)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    truth.finish(models=list(models.values()), optimizers=optimizers, scalers=scalers)


def one_for_another(truth: Truth, tracer: Tracer) -> None:
    """The optimizer is replaced in mid-run, as Adam by SGD: every use is still a step."""
    model = mlp()
    kinds: list[Callable[[], Optimizer]] = [
        lambda: torch.optim.Adam(model.parameters(), lr=1e-2),
        lambda: torch.optim.SGD(model.parameters(), lr=0.05),
        lambda: torch.optim.Adagrad(model.parameters(), lr=1e-2),
    ]
    with tracer(model) as trace:
        for make in kinds:
            optimizer = make()
            for k in range(6):
                loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
                loss.backward()
                truth.backward(loss)
                truth.gradients(model)
                truth.step(optimizer)
                optimizer.step()
                optimizer.zero_grad()
                if k == 5:
                    trace.log(last=float(k))
    truth.finish(model=model, optimizer=optimizer)


def taking_turns(truth: Truth, tracer: Tracer) -> None:
    """Two optimizers of the same parameters, in turns: each use of gradients is a step."""
    model = mlp()
    optimizers: list[Optimizer] = [
        torch.optim.SGD(model.parameters(), lr=0.05),
        torch.optim.Adam(model.parameters(), lr=1e-2),
    ]
    with tracer(model):
        for k in range(16):
            optimizer = optimizers[k % 2]
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            optimizer.zero_grad()
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
    truth.finish(model=model, optimizers=optimizers)


class Clipping(torch.optim.SGD):
    """An optimizer that clips inside its own step."""

    around: Any = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Clips and steps."""
        with self.around():
            nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.3)
        super().step()


def clips_itself(truth: Truth, tracer: Tracer) -> None:
    model = mlp()
    optimizer = Clipping(model.parameters(), lr=0.05)
    optimizer.around = lambda: truth.clipping("norm", model.parameters())
    with tracer(model):
        for _ in range(15):
            loss = squared(model, torch.randn(5, 6), torch.randn(5, 1))
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            optimizer.step()
            truth.step(optimizer)
            optimizer.zero_grad()
    del optimizer.around
    truth.finish(model=model, optimizer=optimizer)


def in_a_generator(truth: Truth, tracer: Tracer) -> None:
    """The loop is a generator, and its caller does other training between two steps."""
    other = mlp()
    taught = torch.optim.SGD(other.parameters(), lr=0.05)

    def training() -> Iterator[int]:
        run, loader = Training(truth), loader_of(48, shuffle=True)
        with tracer(run.model, loader=loader):
            for k, (index, x, y) in enumerate(loader):
                yield k
                run.step(x, y, (0, k, ids(index)))
        run.finish(loader=loader, batch=x)

    for _ in training():
        squared(other, torch.randn(5, 6), torch.randn(5, 1)).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.01)
        taught.step()
        taught.zero_grad()


def reptile(truth: Truth, tracer: Tracer) -> None:
    """Inner steps, after which the weights go back a part of the way, without gradients."""
    run = Training(truth)
    with tracer(run.model):
        for _ in range(4):
            before = [p.detach().clone() for p in run.model.parameters()]
            for _ in range(3):
                run.step(torch.randn(5, 6), torch.randn(5, 1))
            with torch.no_grad():
                for parameter, old in zip(run.model.parameters(), before, strict=True):
                    parameter.lerp_(old, 0.5)
    run.finish()


LOOPS: tuple[Callable[[Truth, Tracer], None], ...] = (
    loss_in_a_tuple,
    backward_twice,
    summed_forwards,
    penalty_on_inputs,
    functional_gradients,
    checkpointed_anew,
    by_depth,
    parametrized,
    toggled,
    stepped_twice,
    retried,
    two_scalers,
    one_for_another,
    taking_turns,
    clips_itself,
    in_a_generator,
    reptile,
)
