"""What a run's parameters and modules are, for `RunInfo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
