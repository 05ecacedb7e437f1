"""Which layers rose at a spike, each against its own recent norm."""

from __future__ import annotations

import numpy as np

from gradtrace.records import Array, LayerRise, LayerTable

EWMA_SPAN = 30
"""Level and spread give the newest step the weight 2 / (EWMA_SPAN + 1), but 1 / n at first."""
MIN_COUNT = 5
"""Steps after which a layer's level means something."""
MIN_RATIO = 1.5
"""The least ratio of a layer that rose to its level."""
MEAN_DEVIATIONS = 4.0
"""And the least distance to it, in mean absolute deviations of logarithms."""


class LayerLevels:
    """Every layer's usual gradient norm and its spread, as exponentially weighted means (EWMA).

    With z the logarithm of a layer's norm and a the weight of its n-th step: the residual
    r = z - level, level += a r, spread += a (|r| - spread), where |r| is a mean absolute deviation.
    A layer rose where z - level > max(log MIN_RATIO, MEAN_DEVIATIONS spread). A handful of
    whole-table numpy calls a step. One thread.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._level: Array = np.empty(0)
        self._spread: Array = np.empty(0)
        self._seen: Array = np.empty(0)

    def learn(self, table: LayerTable) -> None:
        """Takes in the norms of an ordinary step."""
        if table.names is not self._names and table.names != self._names:
            self._rename(table.names)
        z = _log_norms(table)
        known = np.isfinite(z)
        first = known & (self._seen == 0)
        self._level[first] = z[first]
        weight = np.maximum(2 / (EWMA_SPAN + 1), 1 / (self._seen + 1))
        residual = np.where(known, z - self._level, 0.0)
        self._level += weight * residual
        self._spread += np.where(known, weight * (np.abs(residual) - self._spread), 0.0)
        self._seen += known

    def _rename(self, names: tuple[str, ...]) -> None:
        at = {name: i for i, name in enumerate(self._names)}
        old = np.asarray([at.get(name, -1) for name in names], dtype=np.intp)
        kept = old >= 0
        for column in ("_level", "_spread", "_seen"):
            values = np.zeros(len(names))
            values[kept] = getattr(self, column)[old[kept]]
            setattr(self, column, values)
        self._names = names

    def rises(self, table: LayerTable) -> list[LayerRise]:
        """The layers that rose, largest ratio first; one that is not finite has the ratio Inf."""
        if table.names != self._names:
            return []
        norms = table.column("norm")
        with np.errstate(all="ignore"):
            distance = np.log(norms) - self._level
        distance[table.column("nonfinite") > 0] = np.inf
        far = distance > np.maximum(np.log(MIN_RATIO), MEAN_DEVIATIONS * self._spread)
        found = np.flatnonzero(far & (self._seen >= MIN_COUNT))
        order = found[np.argsort(-distance[found], kind="stable")]
        with np.errstate(over="ignore"):
            ratios = np.exp(distance[order])
        return [
            LayerRise(table.names[i], float(norms[i]), float(ratio))
            for i, ratio in zip(order, ratios, strict=True)
        ]


def _log_norms(table: LayerTable) -> Array:
    norms = table.column("norm")
    with np.errstate(all="ignore"):
        z: Array = np.log(np.where(norms > 0, norms, np.nan))
    return z
