"""Everything in PyTorch that taps replace or register."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules import module as torch_module
from torch.nn.utils import clip_grad
from torch.optim import optimizer as torch_optimizer
from torch.utils.data import DataLoader
from torch.utils.data import dataloader as torch_dataloader

from gradtrace.taps.patches import registry

autograd: Any = torch.autograd


def _cell(function: Any) -> Any:
    return function.__closure__[function.__code__.co_freevars.index("func")].cell_contents


def patched_places(loader: DataLoader[Any] | None = None) -> dict[str, Any]:
    """What stands in each place now."""
    places = {
        "backward": autograd._engine_run_backward,
        "clip_norm": _cell(clip_grad.clip_grad_norm_),
        "clip_scaling": _cell(clip_grad._clip_grads_with_norm_),
        "clip_value": _cell(clip_grad.clip_grad_value_),
        "scale": torch.amp.GradScaler.scale,
        "unscale": torch.amp.GradScaler.unscale_,
        "scaler_step": torch.amp.GradScaler.step,
        "pre": list(torch_optimizer._global_optimizer_pre_hooks),
        "post": list(torch_optimizer._global_optimizer_post_hooks),
        "forward": list(torch_module._global_forward_hooks),
        "loaders": [
            vars(torch_dataloader._BaseDataLoaderIter)[name]
            for name in ("__init__", "_reset", "_next_index", "__next__")
        ],
        "arriving": vars(torch_dataloader._MultiProcessingDataLoaderIter)["_get_data"],
        "registry": list(registry._installed),
    }
    if loader is not None:
        places["loader"] = dict(vars(loader))
    return places
