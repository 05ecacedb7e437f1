"""What can be put around a training loop: gradtrace in several settings, and its peers."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import backends
from benchmarks.models import Loop, build


def bare(loop: Loop) -> None:
    """Nothing."""


def _traced(loop: Loop, **cadence: Any) -> None:
    from gradtrace import Sampling, gradtrace

    directory = tempfile.mkdtemp(prefix="gradtrace-bench-")
    gradtrace(loop.model, directory=directory, sampling=Sampling(**cadence)).start()


def defaults(loop: Loop) -> None:
    """`with gradtrace(model):` and its run log."""
    _traced(loop)


def _beside_defaults(loop: Loop, **options: Any) -> None:
    from gradtrace import gradtrace

    directory = tempfile.mkdtemp(prefix="gradtrace-bench-")
    gradtrace(loop.model, directory=directory, **options).start()


def without_spikes(loop: Loop) -> None:
    """The defaults without spike detection."""
    _beside_defaults(loop, spikes=None)


def histograms(loop: Loop) -> None:
    """The defaults and, on every step, each layer's histogram."""
    _traced(loop, histograms=1)


def everything(loop: Loop) -> None:
    """Gradients, weights, updates, activations and output gradients on every step."""
    _traced(loop, activations=1, updates=1)


def gradients(loop: Loop) -> None:
    """Gradients on every step and nothing else."""
    _traced(loop, activations=0, updates=0)


def hooks(loop: Loop) -> None:
    """Hooks that call `.item()`, as tutorials write them."""
    seen: dict[str, float] = {}

    def activation(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen[f"{name}.mean"] = output.detach().mean().item()
                seen[f"{name}.std"] = output.detach().std().item()

        return hook

    def gradient(name: str) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            seen[f"{name}.norm"] = grad.norm().item()
            seen[f"{name}.mean"] = grad.mean().item()
            seen[f"{name}.std"] = grad.std().item()
            seen[f"{name}.max"] = grad.abs().max().item()

        return hook

    for name, module in loop.model.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(activation(name))
    for name, parameter in loop.model.named_parameters():
        parameter.register_hook(gradient(name))


def wandb_watch(loop: Loop) -> None:
    """`wandb.watch(model, log="all", log_freq=1)`, offline, with one `log` a step."""
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), project="bench")
    run.watch(loop.model, log="all", log_freq=1)
    loop.after_backward.append(lambda loss: run.log({"loss": loss.item()}))


def trainscope(loop: Loop) -> None:
    """Trainscope with its defaults, called as its quick start does."""
    os.chdir(tempfile.mkdtemp())
    from trainscope import TrainScope
    from trainscope.core.config import TrainScopeConfig

    scope: Any = TrainScope(loop.model, loop.optimizer, config=TrainScopeConfig()).attach()
    steps = itertools.count()
    loop.after_backward.append(lambda loss: scope.step(loss.item(), batch_index=next(steps)))


VARIANTS: dict[str, Callable[[Loop], None]] = {
    "bare": bare,
    "bare again": bare,
    "gradtrace, gradients only": gradients,
    "gradtrace, defaults": defaults,
    "gradtrace, everything each step": everything,
    "hooks with .item()": hooks,
    "wandb.watch": wandb_watch,
    "trainscope": trainscope,
}


BESIDE_DEFAULTS: dict[str, Callable[[Loop], None]] = {
    "defaults again": defaults,
    "without spike detection": without_spikes,
    "with histograms on every step": histograms,
}
"""What is compared with the defaults, not with the bare loop."""


def _exporters(*names: str) -> Callable[[Loop], None]:
    def traced(loop: Loop) -> None:
        _beside_defaults(loop, exporters=[backends.exporter(name) for name in names])

    return traced


def _failing(make: Callable[[], Any]) -> Callable[[Loop], None]:
    return lambda loop: _beside_defaults(loop, exporters=[make()])


WITH_EXPORTERS: dict[str, Callable[[Loop], None]] = {
    "defaults again": defaults,
    **{name: _exporters(name) for name in backends.NAMES},
    "all exporters": _exporters(*backends.NAMES),
}
"""Exporters, each with its real backend on this machine; compared with the defaults, too."""


OUTAGES: dict[str, dict[str, Callable[[Loop], None]]] = {
    "mlflow": {"server killed for 20 s": _failing(backends.mlflow_killed)},
    "wandb": {
        "wandb-core killed": _failing(backends.wandb_killed),
        "wandb-core stopped for 20 s": _failing(backends.wandb_stopped),
    },
}
"""Backends that fail on the way, compared with the same exporter whose backend is well."""


def resident() -> int:
    """Bytes of memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def prepare(model_name: str, variant: str, threads: int) -> Loop:
    """One training loop with one variant around it."""
    torch.set_num_threads(threads)
    loop = build(model_name)
    known = VARIANTS | BESIDE_DEFAULTS | WITH_EXPORTERS
    for failing in OUTAGES.values():
        known |= failing
    known[variant](loop)
    return loop
