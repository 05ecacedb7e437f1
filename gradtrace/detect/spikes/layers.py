"""Which layers rose at a spike, each against its own recent norm."""

from __future__ import annotations

import numpy as np

from gradtrace.records import Array, LayerRise, LayerTable

SPAN = 30
LEAST_RATIO = 1.5
SPREADS = 4.0


class LayerLevels:
    """Every layer's usual gradient norm and its spread, in logarithms, over about SPAN steps.

    A handful of whole-table numpy calls a step. One thread.
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
        weight = np.maximum(2 / (SPAN + 1), 1 / (self._seen + 1))
        surprise = np.where(known, z - self._level, 0.0)
        self._level += weight * surprise
        self._spread += np.where(known, weight * (np.abs(surprise) - self._spread), 0.0)
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
        """The layers far above their own level, largest ratio first.

        Far is `LEAST_RATIO` times the level and `SPREADS` mean deviations. A layer that is not
        finite has ratio Inf.
        """
        if table.names != self._names:
            return []
        norms = table.column("norm")
        with np.errstate(all="ignore"):
            distance = np.log(norms) - self._level
        distance[table.column("nonfinite") > 0] = np.inf
        far = distance > np.maximum(np.log(LEAST_RATIO), SPREADS * self._spread)
        found = np.flatnonzero(far & (self._seen >= FEWEST))
        order = found[np.argsort(-distance[found], kind="stable")]
        with np.errstate(over="ignore"):
            ratios = np.exp(distance[order])
        return [
            LayerRise(table.names[i], float(norms[i]), float(ratio))
            for i, ratio in zip(order, ratios, strict=True)
        ]


FEWEST = 5
"""Steps after which a layer's level means something."""


def _log_norms(table: LayerTable) -> Array:
    norms = table.column("norm")
    with np.errstate(all="ignore"):
        z: Array = np.log(np.where(norms > 0, norms, np.nan))
    return z
