"""Which modules' outputs an exporter shows: those with the largest values or the most zeros."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import numpy as np

from gradtrace.metrics.layers import Layers
from gradtrace.records import Array, LayerTable, StepRecord

METRICS = ("activation_max_abs", "activation_zero_fraction")
_COLUMNS = ("max_abs", "zero_fraction")


class ModuleSeries:
    """The metrics of outputs to send, from records fed in order. One thread.

    `layers` as for `LayerSeries`: globs over modules' names, or how many modules; one half of them
    those with the largest `max_abs`, where half precision would overflow first, the other those
    with the largest `zero_fraction`, where units may have died. They are chosen anew at samples 1,
    10, 100, ... There are no groups, for the output of a module is that of its last part.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._names: tuple[str, ...] | None = None
        self._chosen: list[tuple[int, str]] = []
        self._sums: Array = np.zeros((0, len(_COLUMNS)))
        self._fed = 0

    def update(self, record: StepRecord) -> dict[str, dict[str, float]]:
        """Values by module, then by metric; empty at steps that measured no outputs."""
        table = record.activations
        if table is None or not len(table):
            return {}
        values = np.stack([table.column(column) for column in _COLUMNS], axis=1)
        self._learn(table, values)
        return {
            name: {
                metric: value
                for metric, value in zip(METRICS, values[at].tolist(), strict=True)
                if not math.isnan(value)
            }
            for at, name in self._chosen
        }

    def _learn(self, table: LayerTable, values: Array) -> None:
        if table.names is not self._names and table.names != self._names:
            self._names = table.names
            self._fed = 0
            self._sums = np.zeros_like(values)
            self._chosen = []
            if not isinstance(self._layers, int):
                globs = self._layers
                self._chosen = [
                    (at, name)
                    for at, name in enumerate(table.names)
                    if any(fnmatchcase(name, glob) for glob in globs)
                ]
        self._sums += np.nan_to_num(values, posinf=0.0, neginf=0.0)
        self._fed += 1
        if isinstance(self._layers, int) and self._fed in (1, 10, 100, 1000, 10_000, 100_000):
            self._choose(table.names, self._layers)
            self._sums[:] = 0.0

    def _choose(self, names: tuple[str, ...], most: int) -> None:
        large, zeros = (np.argsort(-column, kind="stable").tolist() for column in self._sums.T)
        taken = list(dict.fromkeys(large[: (most + 1) // 2]))
        taken += [at for at in zeros if at not in taken][: most - len(taken)]
        self._chosen = [(at, names[at]) for at in taken]
