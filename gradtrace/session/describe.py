"""What a run is: its parameters and modules, its rank, the versions it ran with."""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from gradtrace.measure.parameters import Parameters


def describe_parameters(parameters: Parameters) -> list[dict[str, Any]]:
    """Name, shape, dtype, device of each parameter, and whether it is trained."""
    return [
        {
            "name": name,
            "shape": list(p.shape),
            "dtype": str(p.dtype).removeprefix("torch."),
            "device": str(p.device),
            "trainable": p.requires_grad,
        }
        for name, p in zip(parameters.names, parameters.tensors, strict=True)
    ]


def describe_modules(models: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """Name and type of each module."""
    return [
        {"name": ".".join(part for part in (prefix, name) if part), "type": type(module).__name__}
        for prefix, model in models.items()
        for name, module in model.named_modules()
    ]


def is_sharded(parameters: Parameters, models: Mapping[str, nn.Module]) -> bool:
    """Whether a rank may hold a part of each parameter only, as under FSDP."""
    return any(hasattr(p, "to_local") for p in parameters.tensors) or any(
        type(module).__name__ == "FullyShardedDataParallel"
        for model in models.values()
        for module in model.modules()
    )


def new_run_name() -> str:
    """Date, time and a short random suffix.

    Of 1,000 ranks that start within a second two are named alike in one of two million starts.
    """
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(5)


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks, from torch.distributed if it is set up."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError:
        return 0, 1


def versions() -> dict[str, str]:
    """What numbers may depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("gradtrace", "numpy", "pyarrow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
