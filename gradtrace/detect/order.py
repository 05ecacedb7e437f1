"""The order in which layers run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradtrace.records import LayerTable


class LayerOrder:
    """Sorts parameters by when their module first ran.

    `modules` ranks modules by first execution; it may grow. Where it does not know one, the order
    in which the model lists its parameters stands for all.
    """

    def __init__(self, modules: Mapping[str, int]) -> None:
        self._modules = modules

    def forward(self, layers: Sequence[str], table: LayerTable | None) -> list[str]:
        """`layers` in the order of the forward pass; the backward pass meets the last one first."""
        ranks = [self._rank(layer) for layer in layers]
        known = [rank for rank in ranks if rank is not None]
        if len(known) == len(layers):
            pairs = sorted(zip(known, range(len(layers)), strict=True))
            return [layers[i] for _, i in pairs]
        if table is None:
            return list(layers)
        chosen = set(layers)
        return [name for name in table.names if name in chosen]

    def _rank(self, layer: str) -> int | None:
        module = layer.rpartition(".")[0]
        rank = self._modules.get(module)
        # A parameter held by a container runs no later than the container itself ends.
        return rank if rank is not None else self._modules.get(module.rpartition(".")[0])
