"""Models that several ranks train together, in each way that torch offers."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gradtrace import Sampling, gradtrace

BATCH = 16


class Perceptron(nn.Module):
    """Three layers, of sizes that two ranks do not halve evenly unless asked for."""

    def __init__(self, sizes: tuple[int, ...] = (6, 7, 5, 4)) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        last: Tensor = self.layers[-1](x)
        return last


class Normed(nn.Module):
    """What tensor parallelism is shown with: up and down in a block, and a norm.

    The block's output may still be under way when it returns.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = {"up": nn.Linear(6, 8), "relu": nn.ReLU(), "down": nn.Linear(8, 4)}
        self.block = nn.Sequential(OrderedDict(layers))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.block(x))
        return y


def batch(step: int, micro: int, share: int, of: int) -> tuple[Tensor, Tensor]:
    """One rank's share of a batch."""
    generator = torch.Generator().manual_seed(1000 * step + micro)
    x = torch.randn(BATCH, 6, generator=generator)
    y = torch.randn(BATCH, 4, generator=generator)
    return x[share::of], y[share::of]


@dataclass
class SetUp:
    """A model and how its loop goes; `syncing(last)` surrounds a micro-batch."""

    model: nn.Module
    micro: int = 1
    syncing: Callable[[bool], AbstractContextManager[Any]] = lambda last: nullcontext()
    whole: bool = False
    """Whether every rank sees the whole batch."""


def _ddp(no_sync: bool) -> SetUp:
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(Perceptron())
    if not no_sync:
        return SetUp(model)
    return SetUp(model, 3, lambda last: nullcontext() if last else model.no_sync())


def _fsdp1(no_sync: bool, original: bool) -> SetUp:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(
        Perceptron(), use_orig_params=original, device_id=torch.device("cpu")
    )
    if not no_sync:
        return SetUp(model)
    return SetUp(model, 3, lambda last: nullcontext() if last else model.no_sync())


def _fsdp2(micro: int, no_sync: bool, half: bool = False) -> SetUp:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options: dict[str, Any] = {}
    if half:
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    model: Any = Perceptron()
    for layer in model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)

    @contextlib.contextmanager
    def syncing(last: bool) -> Iterator[None]:
        model.set_requires_gradient_sync(last or not no_sync)
        yield

    return SetUp(model, micro, syncing)


def _tensor_parallel(how: str) -> SetUp:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_module
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    model = Normed()
    if how == "plain":
        plan: dict[str, Any] = {"block.up": ColwiseParallel(), "block.down": RowwiseParallel()}
    elif how == "dtensors":
        plan = {
            "block.up": ColwiseParallel(use_local_output=False),
            "block.down": RowwiseParallel(use_local_output=False),
        }
    else:
        plan = {
            "block.up": ColwiseParallel(use_local_output=False),
            "block.down": RowwiseParallel(output_layouts=Shard(0), use_local_output=False),
            "norm": SequenceParallel(sequence_dim=0),
        }
    parallelize_module(model, mesh, plan)
    if how == "dtensors":
        distribute_module(model.norm, mesh)
    return SetUp(model, whole=True)


SET_UPS: dict[str, Callable[[], SetUp]] = {
    "ddp": lambda: _ddp(False),
    "ddp no_sync": lambda: _ddp(True),
    "fsdp1 flat": lambda: _fsdp1(False, False),
    "fsdp1 flat no_sync": lambda: _fsdp1(True, False),
    "fsdp1 original": lambda: _fsdp1(False, True),
    "fsdp1 original no_sync": lambda: _fsdp1(True, True),
    "fsdp2": lambda: _fsdp2(1, False),
    "fsdp2 accumulated": lambda: _fsdp2(3, False),
    "fsdp2 no_sync": lambda: _fsdp2(3, True),
    "fsdp2 no_sync half": lambda: _fsdp2(3, True, half=True),
    "tensor parallel": lambda: _tensor_parallel("plain"),
    "tensor parallel dtensors": lambda: _tensor_parallel("dtensors"),
    "sequence parallel": lambda: _tensor_parallel("sequence"),
}


class Collectives(TorchDispatchMode):
    """Counts the operations on process groups that this thread dispatches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(hasattr(kind, "to_local") for kind in types):
            return NotImplemented  # comes again as what it does to local tensors
        name = str(function)
        if "c10d" in name and "wait_tensor" not in name:
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


def issued() -> int:
    """How many collectives this rank's gloo backend has run, by its own count."""
    group: Any = distributed.group.WORLD
    backend = group._get_backend(torch.device("cpu"))
    number: int = backend._get_sequence_number_for_group()
    return number


@dataclass
class Outcome:
    """How a run on one rank ended."""

    steps: int = 0
    digest: str = ""
    losses: list[list[float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Of this rank's part of the gradients, as the optimizer got them."""
    collectives: Counter[str] = field(default_factory=Counter)
    issued: int = 0
    records: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    spikes: list[tuple[int, str]] = field(default_factory=list)
    dropped: int = 0


def own(tensor: Tensor) -> Tensor:
    """This rank's part."""
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part.detach()


def train(
    name: str,
    steps: int,
    sampling: Sampling | None,
    *,
    spike: tuple[int, int] | None = None,
    dispatched: bool = True,
) -> Outcome:
    """One run of a set-up, traced where `sampling` is given.

    `spike` is a step and the rank whose loss is large there. `dispatched` counts what is dispatched
    too, which makes a loop several times slower.
    """
    torch.manual_seed(0)
    set_up = SET_UPS[name]()
    rank, world = distributed.get_rank(), distributed.get_world_size()
    share, of = (0, 1) if set_up.whole else (rank, world)
    model, outcome = set_up.model, Outcome()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    tracing: Any = nullcontext()
    if sampling is not None:
        tracing = gradtrace(model, directory=None, sampling=sampling)
    before, counted = issued(), Collectives()
    with counted if dispatched else nullcontext(), tracing as trace:
        for step in range(steps):
            optimizer.zero_grad()
            losses = []
            for micro in range(set_up.micro):
                x, y = batch(step, micro, share, of)
                with set_up.syncing(micro == set_up.micro - 1):
                    output = model(x)
                    if hasattr(output, "full_tensor"):
                        output = output.full_tensor()
                    loss = functional.mse_loss(output, y) / set_up.micro
                    if spike == (step, rank):
                        loss = loss * 100
                    loss.backward()
                losses.append(float(loss.detach()))
            outcome.losses.append(losses)
            outcome.norms.append(_norm(model))
            optimizer.step()
            outcome.steps += 1
    return _ended(outcome, model, trace, counted, before)


def _norm(model: nn.Module) -> float:
    """What this rank can know of its gradients' norm: summands of a sum say nothing."""
    squares = [
        float(own(p.grad).double().square().sum())
        for p in model.parameters()
        if p.grad is not None
        and not any(placement.is_partial() for placement in getattr(p.grad, "placements", ()))
    ]
    return float(sum(squares) ** 0.5)


def _ended(
    outcome: Outcome, model: nn.Module, trace: Any, counted: Collectives, before: int
) -> Outcome:
    outcome.collectives, outcome.issued = counted.count, issued() - before
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(own(parameter).contiguous().numpy().tobytes())
    outcome.digest = digest.hexdigest()
    if trace is not None:
        outcome.records, outcome.dropped = trace.steps, trace.dropped
        outcome.notes = [note.message for note in trace.notes]
        outcome.spikes = [(one.step, one.signal) for one in trace.spikes]
    return outcome


def bare_and_traced(
    names: list[str], steps: int, sampling: Sampling, **options: Any
) -> dict[str, tuple[Outcome, Outcome]]:
    """Each set-up without a trace and with one, in one process group."""
    return {
        name: (train(name, steps, None, **options), train(name, steps, sampling, **options))
        for name in names
    }


class Stage(nn.Module):
    """One rank's part of a perceptron that is cut in two."""

    def __init__(self, layers: list[nn.Linear], last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._last = last

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if not (self._last and place == len(self.layers) - 1):
                x = functional.relu(x)
        return x


def pipeline(schedule: str, steps: int, sampling: Sampling | None) -> Outcome:
    """One run of a pipeline of two ranks, four micro-batches a step."""
    from torch.distributed import pipelining

    torch.manual_seed(0)
    layers: Any = list(Perceptron().layers)
    rank = distributed.get_rank()
    model = Stage(layers[1:] if rank else layers[:1], last=rank == 1)
    stage = pipelining.PipelineStage(model, rank, 2, torch.device("cpu"))
    run = getattr(pipelining, schedule)(stage, n_microbatches=4, loss_fn=functional.mse_loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    tracing: Any = nullcontext()
    if sampling is not None:
        tracing = gradtrace(model, directory=None, sampling=sampling)
    outcome, before = Outcome(), issued()
    with Collectives() as counted, tracing as trace:
        for step in range(steps):
            x, y = batch(step, 0, 0, 1)
            optimizer.zero_grad()
            losses: list[Tensor] = []
            if rank:
                run.step(target=y, losses=losses)
            else:
                run.step(x)
            outcome.losses.append([float(loss) for loss in losses])
            outcome.norms.append(_norm(model))
            optimizer.step()
            outcome.steps += 1
    return _ended(outcome, model, trace, counted, before)


def pipeline_bare_and_traced(
    schedules: list[str], steps: int, sampling: Sampling
) -> dict[str, tuple[Outcome, Outcome]]:
    """As `bare_and_traced`, of pipelines."""
    return {
        name: (pipeline(name, steps, None), pipeline(name, steps, sampling)) for name in schedules
    }
