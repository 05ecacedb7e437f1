"""What hangs on the user's objects and on torch itself: attributes, hooks, replaced functions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, dataloader

HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def inventory(label: str, thing: Any) -> dict[str, Any]:
    """Type, attributes and numbers of hooks, of an object and of what it is made of."""
    found: dict[str, Any] = {}
    if isinstance(thing, nn.Module):
        for path, module in thing.named_modules():
            found[f"{label}.{path}"] = attributes(module)
        for path, parameter in thing.named_parameters():
            found[f"{label}.{path}"] = attributes(parameter)
    elif isinstance(thing, Optimizer):
        found[label] = attributes(thing), getattr(thing.step, "__qualname__", "")
        for k, parameter in enumerate(p for g in thing.param_groups for p in g["params"]):
            found[f"{label} {k}"] = attributes(parameter)
    elif isinstance(thing, DataLoader):
        found[label] = attributes(thing)
        for name in ("dataset", "sampler", "batch_sampler", "_iterator", "collate_fn"):
            found[f"{label}.{name}"] = attributes(getattr(thing, name, None))
    elif not isinstance(thing, Tensor):
        found[label] = attributes(thing)
    return found


def attributes(thing: Any) -> tuple[Any, ...]:
    """An object's type, the names of its attributes, and how many hooks it holds."""
    values: Mapping[str, Any] = getattr(thing, "__dict__", {})
    hooks = {name: len(value) for name, value in values.items() if "hooks" in name and value}
    if isinstance(thing, Tensor):
        hooks |= {name: len(getattr(thing, name, None) or ()) for name in HOOKS}
    return type(thing).__qualname__, sorted(values), hooks


def places() -> dict[str, Any]:
    """Every function of torch that could be replaced, and every global list of hooks."""
    # The threads of a loader's workers end when they like.
    names = [t.name for t in threading.enumerate() if not t.name.startswith("QueueFeeder")]
    return dict(_functions()) | dict(_hooks()) | {"threads": sorted(names)}


def _functions() -> Iterator[tuple[str, Any]]:
    clip_grad = sys.modules["torch.nn.utils.clip_grad"]
    owners: tuple[Any, ...] = (
        *(torch.autograd, torch.autograd.graph, torch.nn.utils, clip_grad, torch.optim, Tensor),
        *(Optimizer, torch.amp.GradScaler, nn.Module, DataLoader, dataloader),
        *(dataloader._SingleProcessDataLoaderIter, dataloader._MultiProcessingDataLoaderIter),
        *(dataloader._BaseDataLoaderIter, nn.Parameter, sys.modules["torch.optim.optimizer"]),
    )
    for owner in owners:
        for name, value in vars(owner).items():
            if name.startswith("__resume_at"):
                continue  # the compiler's, where it breaks a graph
            if callable(value) or isinstance(value, property | staticmethod | classmethod):
                yield f"{owner.__name__}.{name}", id(value)
    for name, function in vars(clip_grad).items():
        for k, cell in enumerate(getattr(function, "__closure__", None) or ()):
            yield f"{name}, cell {k}", id(cell.cell_contents)


def _hooks() -> Iterator[tuple[str, Any]]:
    for owner in (sys.modules["torch.optim.optimizer"], sys.modules["torch.nn.modules.module"]):
        for name, value in vars(owner).items():
            if "hooks" in name and isinstance(value, dict):
                yield f"{owner.__name__}.{name}", list(value)
