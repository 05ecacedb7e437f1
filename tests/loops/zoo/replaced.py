"""Models that change under way: parameters replaced, added, grown, copied and averaged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, update_bn

from zoo.parts import Training, ids, loader_of, mlp
from zoo.tracing import Tracer
from zoo.truth import Truth


def densified(truth: Truth, tracer: Tracer) -> None:
    """3D Gaussian splatting: parameters are replaced by longer ones, an optimizer for each."""
    splats = nn.ParameterDict({"means": torch.randn(10, 3), "scales": torch.randn(10, 3)})
    optimizers = {name: torch.optim.Adam([p], lr=1e-2) for name, p in splats.items()}
    gone: list[Any] = []
    with tracer(splats):
        for k in range(24):
            loss = (splats["means"] * splats["scales"].sigmoid()).sum(0).square().mean()
            loss.backward()
            truth.backward(loss)
            truth.gradients(splats)
            truth.step(*optimizers.values())
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
            if k % 8 == 7:
                for name, optimizer in optimizers.items():
                    old = optimizer.param_groups[0]["params"][0]
                    new = nn.Parameter(torch.cat([old, old[:5] * 0.9]).detach())
                    optimizer.state.pop(old)
                    optimizer.param_groups[0]["params"] = [new]
                    splats[name] = new
                    gone.append(truth.dies(name, old))
                    del old
            elif gone:
                truth.buried(*gone)
                gone.clear()
    truth.finish(model=splats, optimizers=list(optimizers.values()))


def swapped(
    truth: Truth,
    tracer: Tracer,
    model: nn.Module,
    compute: Callable[[Any], Tensor],
    swap: Callable[[Any, int], list[Tensor]],
) -> None:
    """A part of the model is swapped twice, each time with a new optimizer.

    `swap` gives the parameters that were let go.
    """
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    gone: list[Any] = []
    with tracer(model):
        for k in range(24):
            if k in (8, 16):
                gone = [truth.dies("old", old) for old in swap(model, k)]
                optimizer = torch.optim.SGD(
                    [p for p in model.parameters() if p.requires_grad], lr=0.02
                )
            optimizer.zero_grad()
            loss = compute(model)
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            optimizer.step()
            if gone and k in (10, 18):
                truth.buried(*gone)
                gone.clear()
    truth.finish(model=model, optimizer=optimizer)


def head_swapped(truth: Truth, tracer: Tracer) -> None:
    """A head for other classes."""

    def swap(model: Any, k: int) -> list[Tensor]:
        old = list(model["head"].parameters())
        model["head"] = nn.Linear(8, k)
        return old

    swapped(
        truth,
        tracer,
        nn.ModuleDict({"body": nn.Linear(6, 8), "head": nn.Linear(8, 3)}),
        lambda m: m["head"](m["body"](torch.randn(5, 6))).square().mean(),
        swap,
    )


class Adapted(nn.Module):
    """A frozen layer with an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.adapter = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.adapter(x)
        return out


def lora_switched(truth: Truth, tracer: Tracer) -> None:
    """LoRA: one adapter after the other, of another rank, under one name."""

    def swap(model: Any, k: int) -> list[Tensor]:
        old = list(model.adapter.parameters())
        rank = 2 + k // 8
        model.adapter = nn.Sequential(
            nn.Linear(6, rank, bias=False), nn.Linear(rank, 6, bias=False)
        )
        return old

    swapped(truth, tracer, Adapted(), lambda m: m(torch.randn(5, 6)).square().mean(), swap)


def vocabulary_grown(truth: Truth, tracer: Tracer) -> None:
    """A language model gets tokens: its embedding, tied to its head, is replaced."""
    model = nn.ModuleDict({"table": nn.Embedding(9, 6), "head": nn.Linear(6, 9, bias=False)})
    model["head"].weight = model["table"].weight

    def compute(model: Any) -> Tensor:
        tokens = torch.randint(0, 9, (12,))
        return F.cross_entropy(model["head"](model["table"](tokens).tanh()), tokens)

    def swap(model: Any, k: int) -> list[Tensor]:
        old = model["table"].weight
        table = nn.Embedding(len(old) + 4, 6)
        with torch.no_grad():
            table.weight[: len(old)] = old
        model["table"] = table
        model["head"] = nn.Linear(6, len(old) + 4, bias=False)
        model["head"].weight = table.weight
        return [old]

    swapped(truth, tracer, model, compute, swap)


def recreated(truth: Truth, tracer: Tracer) -> None:
    """Every parameter is made anew under its name and shape, as sharding does."""

    def swap(model: Any, k: int) -> list[Tensor]:
        old = list(model.parameters())
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
        return old

    swapped(truth, tracer, mlp(), lambda m: m(torch.randn(5, 6)).square().mean(), swap)


def pruned(truth: Truth, tracer: Tracer) -> None:
    """Layers are taken out of the model."""
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))

    def swap(model: Any, k: int) -> list[Tensor]:
        old = list(model[-1].parameters())
        del model[-1]
        return old

    swapped(truth, tracer, model, lambda m: m(torch.randn(5, 6)).square().mean(), swap)


def data_grown(truth: Truth, tracer: Tracer) -> None:
    """The same Parameter objects get more rows through `.data`, and another type later."""
    model = nn.ParameterDict({"points": torch.randn(8, 3), "bias": torch.randn(3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with tracer(model):
        for k in range(18):
            if k == 6:
                points = model["points"]
                points.data = torch.cat([points.data, points.data[:5]])
            if k == 12:
                model.double()
            loss = (model["points"] + model["bias"]).square().mean()
            loss.backward()
            truth.backward(loss)
            truth.gradients(model)
            truth.step(optimizer)
            del loss  # autograd remembers the old shapes for as long as its graph lives
            optimizer.step()
            optimizer.zero_grad()
    truth.finish(model=model, optimizer=optimizer)


def ema(truth: Truth, tracer: Tracer) -> None:
    """A copy that averages the weights, and is evaluated after each step."""
    run, loader = Training(truth), loader_of(48)
    twin = copy.deepcopy(run.model).requires_grad_(False)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            run.step(x, y, (0, k, ids(index)))
            for mine, theirs in zip(twin.parameters(), run.model.parameters(), strict=True):
                mine.lerp_(theirs.detach(), 0.1)
            truth.keep("average", twin(x))
            if k == 6:
                twin = copy.deepcopy(run.model).requires_grad_(False)  # begun again, inside
    run.finish(loader=loader, twin=twin, batch=x)


def averaged(truth: Truth, tracer: Tracer) -> None:
    """SWA: `update_bn` goes through the loader in training mode, without gradients."""
    run, loader = Training(truth), loader_of(24, shuffle=True)
    run.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    average = AveragedModel(run.model)
    with tracer(run.model, loader=loader):
        for _ in range(3):
            for k, (index, x, y) in enumerate(loader):
                run.step(x, y, (None, k, ids(index)))
            average.update_parameters(run.model)
            update_bn((x for _, x, _ in loader), average)
            update_bn((x for _, x, _ in loader), run.model)
    run.finish(loader=loader, average=average, batch=x)


def rolled_back(truth: Truth, tracer: Tracer) -> None:
    """After a bad patch the last good state of model and optimizer is loaded."""
    run, loader = Training(truth), loader_of(48)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            if k == 4:
                good = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
            if k == 8:
                run.model.load_state_dict(good[0])
                run.optimizer.load_state_dict(good[1])
            run.step(x, y, (0, k, ids(index)))
    run.finish(loader=loader, batch=x)


LOOPS = (
    densified,
    head_swapped,
    lora_switched,
    vocabulary_grown,
    recreated,
    pruned,
    data_grown,
    ema,
    averaged,
    rolled_back,
)
