"""Gradients that `fully_shard` (FSDP2) holds back: added up unsharded, not reduced yet.

After `set_requires_gradient_sync(False)` a backward leaves its gradients with the unsharded
parameter, which the model does not show; the sharded one's `.grad` stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from gradtrace.measure.flat import local


class HeldBack:
    """Looks for such gradients of some parameters. Training thread; no collective.

    Nothing is found, at no cost, where no parameter is FSDP2's.
    """

    def __init__(self, models: Iterable[nn.Module], parameters: Sequence[nn.Parameter]) -> None:
        sharded = {id(one.sharded_param): one for model in models for one in _managed(model)}
        self._by_position = {
            i: sharded[id(p)] for i, p in enumerate(parameters) if id(p) in sharded
        }

    def into(self, grads: list[Any]) -> None:
        """Puts what is held back in the place of what the parameters show."""
        for i, managed in self._by_position.items():
            held_back = _gradient(managed)
            if held_back is not None:
                grads[i] = held_back

    def at(self, position: int) -> Tensor | None:
        """What is held back for one parameter; None where nothing is."""
        managed = self._by_position.get(position)
        return None if managed is None else _gradient(managed)


def _managed(model: nn.Module) -> Iterable[Any]:
    """FSDP2's own objects, one a parameter."""
    for module in model.modules():
        state_of = getattr(module, "_get_fsdp_state", None)
        if state_of is None:
            continue
        state = state_of()
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:  # older versions of torch have one at most
            groups = [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            yield from getattr(group, "fsdp_params", ())


def _gradient(managed: Any) -> Tensor | None:
    # Either the sum in the dtype that is reduced, or what autograd itself adds into.
    found = getattr(managed, "unsharded_accumulated_grad", None)
    if found is None:
        found = getattr(getattr(managed, "_unsharded_param", None), "grad", None)
    return local(found) if isinstance(found, Tensor) else None
