"""Which layers an exporter shows: groups of layers, and those with the largest gradients.

A model of 10,000 parameters would make 10,000 series of each metric; no chart, no server and no
person is served by that. By default the groups (the first part of a layer's path, with the block's
number behind it) and the top layers are sent; the run log keeps all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from gradtrace.records import Array, LayerTable, StepRecord
from gradtrace.records.histograms import Counts, Floats, in_use

MAX_GROUPS = 64
SHOWN = 12
"""Octaves of a histogram that are sent: at most 97 bins, the smallest 1/5,000 of the largest."""

METRICS = ("grad_norm", "update_ratio", "zero_fraction")

Layers = int | Sequence[str]
"""The groups and this many layers; or globs over layer names, and then exactly those."""


def check_layers(layers: object) -> Layers:
    """`layers` as given. Raises TypeError or ValueError that says what was expected."""
    expected = (
        "expected how many layers to send beside the groups (0 for the groups alone), or a list of "
        'globs over layer names such as ["blocks.0.*"] ([] for none)'
    )
    if isinstance(layers, bool) or not isinstance(layers, (int, Sequence)):
        raise TypeError(f"layers is {layers!r}; {expected}")
    if isinstance(layers, str) or (
        isinstance(layers, Sequence) and not all(isinstance(glob, str) for glob in layers)
    ):
        raise TypeError(f"layers is {layers!r}; {expected}")
    if isinstance(layers, int) and layers < 0:
        raise ValueError(f"layers is {layers}; {expected}")
    return layers if isinstance(layers, int) else tuple(layers)


def group_of(name: str) -> str:
    """The group a layer is in: "blocks.3" of "blocks.3.attn.weight", "head" of "head.weight"."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if len(rest) > 1 and rest[0].isdigit() else first


class LayerSeries:
    """The layer metrics to send, from records fed in order. One thread.

    The top layers are those with the largest mean gradient norm since the last choice; they are
    chosen anew at steps 1, 10, 100, ... so that a run shows few layers in all, and the same ones
    whenever it is sent. Costs some 10 whole-table numpy calls a step.
    """

    def __init__(self, layers: Layers, parameters: Sequence[Mapping[str, Any]] = ()) -> None:
        self._layers = layers
        self._sizes = {str(p["name"]): math.prod(p["shape"]) for p in parameters}
        self._names: tuple[str, ...] | None = None
        self._chosen: list[tuple[int, str]] = []
        self._groups: list[str] = []
        self._group_at = np.zeros(0, dtype=np.intp)
        self._weights: Array = np.zeros(0)
        self._sums: Array = np.zeros(0)
        self._fed = 0

    def update(self, record: StepRecord) -> dict[str, dict[str, float]]:
        """Values by layer or group, then by metric; NaN where not measured at this step."""
        found: dict[str, dict[str, float]] = {}
        table = record.gradients
        if table is not None and len(table):
            self._learn(table)
            norms, zeros = table.column("norm"), table.column("zero_fraction")
            # The norm of a layer that is not finite is unknown, and so is that of its group.
            seen = ~np.isnan(norms) | (table.column("nonfinite") > 0)
            with np.errstate(all="ignore"):
                squares = self._grouped(np.square(norms), seen)
                counted = ~np.isnan(zeros)
                shares = self._grouped(zeros * self._weights, counted)
                shares /= self._grouped(self._weights, counted)
            self._put(found, "grad_norm", norms, np.sqrt(squares))
            self._put(found, "zero_fraction", zeros, shares)
        updates = record.updates
        if updates is not None and updates.names == self._names:
            norms, ratios = updates.column("norm"), updates.column("ratio")
            weights = record.weights
            with np.errstate(all="ignore"):
                if weights is not None and weights.names == self._names:
                    sizes = weights.column("norm")
                else:  # of a weight that did not move nothing is known
                    sizes = norms / ratios
                seen = ~np.isnan(norms) & ~np.isnan(sizes)
                moved = self._grouped(np.square(norms), seen)
                whole = self._grouped(np.square(sizes), seen)
                self._put(found, "update_ratio", ratios, np.sqrt(moved / whole))
        return found

    def histograms(self, record: StepRecord) -> dict[str, tuple[Counts, Floats]]:
        """Counts and edges of the gradients by layer or group, as from `numpy.histogram`.

        A group's are the exact sums over its layers. What is below SHOWN octaves is in one bin, and
        layers without a finite value are left out. Ask after `update`.
        """
        table = record.histograms
        if table is None or self._names is None:
            return {}
        if table.names == self._names:
            at = np.arange(len(table))
        else:  # layers without a gradient have none
            known = {name: i for i, name in enumerate(table.names)}
            at = np.asarray([known.get(name, -1) for name in self._names], dtype=np.intp)
        series = [(g, at[(self._group_at == i) & (at >= 0)]) for i, g in enumerate(self._groups)]
        series += [(name, at[[i]][at[[i]] >= 0]) for i, name in self._chosen]
        found = {}
        for name, layers in series:
            merged = table.merged(layers)
            if merged is not None and math.isfinite(merged[1]) and merged[0].any():
                found[name] = in_use(*merged, octaves=SHOWN)
        return found

    def _put(self, found: dict[str, dict[str, float]], metric: str, own: Array, of: Array) -> None:
        for at, name in enumerate(self._groups):
            found.setdefault(name, {})[metric] = float(of[at])
        for at, name in self._chosen:
            found.setdefault(name, {})[metric] = float(own[at])

    def _grouped(self, values: Array, seen: npt.NDArray[np.bool_]) -> Array:
        """Sums over the layers of each group that were measured; NaN where none was."""
        at, size = self._group_at[seen], len(self._groups)
        sums = np.bincount(at, weights=values[seen], minlength=size).astype(np.float64, copy=False)
        sums[np.bincount(at, minlength=size)[: len(sums)] == 0] = np.nan
        return sums

    def _learn(self, table: LayerTable) -> None:
        if table.names is not self._names and table.names != self._names:
            self._rename(table.names)
        self._sums += np.nan_to_num(table.column("norm"), posinf=0.0, neginf=0.0)
        self._fed += 1
        if isinstance(self._layers, int) and self._fed in (1, 10, 100, 1000, 10_000, 100_000):
            order = np.argsort(-self._sums, kind="stable")[: self._layers]
            self._chosen = [(int(at), table.names[at]) for at in order]
            self._sums[:] = 0.0

    def _rename(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._fed = 0
        self._sums = np.zeros(len(names))
        self._weights = np.asarray([float(self._sizes.get(name, 1)) for name in names])
        self._chosen = []
        if not isinstance(self._layers, int):
            globs = self._layers
            self._chosen = [
                (at, name)
                for at, name in enumerate(names)
                if any(fnmatchcase(name, glob) for glob in globs)
            ]
            self._groups, self._group_at = [], np.zeros(len(names), dtype=np.intp)
            return
        groups = [group_of(name) for name in names]
        if len(set(groups)) > MAX_GROUPS:
            groups = [name.split(".")[0] for name in names]
        known = {group: at for at, group in enumerate(dict.fromkeys(groups))}
        if len(known) > MAX_GROUPS:
            known = {}
        self._groups = list(known)
        self._group_at = np.asarray([known.get(group, 0) for group in groups], dtype=np.intp)
