"""The rows of a step's measurements, and the layer tables made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gradtrace.handover.step import Step
from gradtrace.measure.reading import Reading
from gradtrace.measure.rows import NORM, ROW, N, Positions, gather, statistics
from gradtrace.records import (
    ACTIVATION_COLUMNS,
    MOMENT_COLUMNS,
    UPDATE_COLUMNS,
    Array,
    LayerHistograms,
    LayerTable,
)

Rows = tuple[Positions, Array]
"""Positions [n], ascending, and rows [n, len(ROW)]."""


def rows_of(readings: Iterable[Reading]) -> Rows:
    """The rows of one measurement, ordered by position, a row a layer."""
    parts = [reading.rows() for reading in readings]
    if not parts:
        return np.empty(0, dtype=np.intp), np.empty((0, len(ROW)))
    if len(parts) == 1:
        return gather(*parts[0])
    return gather(np.concatenate([p for p, _ in parts]), np.concatenate([r for _, r in parts]))


def joined(step: Step, table: str) -> Rows | None:
    """One row a layer; a later measurement of a layer replaces an earlier one."""
    found = [
        (at, rows_of(readings)) for at, (name, readings) in enumerate(step.tables) if name == table
    ]
    if not found:
        return None
    if table == "gradients" and step.void:
        found = [
            (at, _without(rows, [gone for a, b, gone in step.void if a <= at < b]))
            for at, rows in found
        ]
    return merged([rows for _, rows in found])


def _without(rows: Rows, gone: Sequence[frozenset[int]]) -> Rows:
    """Rows of gradients that were not thrown away after they had been read."""
    lost = set().union(*gone)
    kept = np.asarray([position not in lost for position in rows[0].tolist()], dtype=bool)
    return rows[0][kept], rows[1][kept]


def merged(found: Sequence[Rows]) -> Rows:
    """One row a layer of several measurements; a later one replaces an earlier one."""
    if len(found) == 1:
        return found[0]
    size = 1 + max((int(p.max()) for p, _ in found if len(p)), default=-1)
    full = np.full((size, len(ROW)), np.nan)
    for positions, rows in found:
        full[positions] = rows
    positions = np.flatnonzero(~np.isnan(full[:, N])).astype(np.intp)
    return positions, full[positions]


def summed(step: Step, table: str) -> Rows | None:
    """One row a layer over all measurements of the step."""
    readings = [r for name, some in step.tables if name == table for r in some]
    return rows_of(readings) if readings else None


def module_table(step: Step, table: str, *, with_range: bool) -> LayerTable | None:
    """What was measured at modules, a row for each that ran; None where nothing was."""
    found = summed(step, table)
    if found is None:
        return None
    positions, rows = found
    names = step.modules
    if len(positions) != len(names):
        names = tuple([names[i] for i in positions])
    columns = ACTIVATION_COLUMNS if with_range else MOMENT_COLUMNS
    return LayerTable(names, statistics(rows, with_range=with_range), columns)


class ParameterTables:
    """Tables with a row for every trained parameter, NaN where nothing was measured.

    Remembers the names of the rows of the last table, so that those of a run are one object.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._shown: Positions = np.empty(0, dtype=np.intp)
        self._subset: tuple[str, ...] = ()

    def moments(self, step: Step, found: Rows | None) -> LayerTable | None:
        """The statistics of gradients or weights."""
        if found is None:
            return None
        return self._table(step, found[0], statistics(found[1]), MOMENT_COLUMNS)

    def updates(self, step: Step, moved: Rows | None, weights: Rows | None) -> LayerTable | None:
        """Norms of updates, and their ratios to the weights'."""
        if moved is None:
            return None
        positions, rows = moved
        values = np.full((len(rows), len(UPDATE_COLUMNS)), np.nan)
        values[:, 0] = rows[:, NORM]
        if weights is not None:
            sizes = np.full(len(step.names), np.nan)
            sizes[weights[0]] = weights[1][:, NORM]
            with np.errstate(all="ignore"):
                values[:, 1] = rows[:, NORM] / sizes[positions]
        # |update| / 0 is no ratio.
        values[~np.isfinite(values[:, 1]), 1] = np.nan
        return self._table(step, positions, values, UPDATE_COLUMNS)

    def _table(
        self, step: Step, positions: Positions, values: Array, columns: tuple[str, ...]
    ) -> LayerTable:
        names, shown = step.names, step.shown
        if len(shown) == len(positions) and np.array_equal(shown, positions):
            table = values
        else:
            full = np.full((len(names), len(columns)), np.nan)
            full[positions] = values
            # A layer that was measured is shown even if it is frozen by now.
            shown = np.union1d(shown, positions)
            table = full[shown]
        if len(shown) == len(names):
            return LayerTable(names, table, columns)
        if self._names is not names or not np.array_equal(self._shown, shown):
            self._names, self._shown = names, shown
            self._subset = tuple([names[i] for i in shown])
        return LayerTable(self._subset, table, columns)


def histograms_of(step: Step) -> dict[int, Array]:
    """Limit and counts by position; a later measurement of a layer replaces an earlier one."""
    found: dict[int, Array] = {}
    for _, readings in step.histograms:
        for reading in readings:
            positions, rows = reading.decoded()
            if reading.divisor is not None:
                with np.errstate(all="ignore"):
                    rows[:, 0] /= reading.divisor.number
            found |= zip(positions.tolist(), rows, strict=True)
    return found


def layer_histograms(names: Sequence[str], found: Mapping[int, Array]) -> LayerHistograms | None:
    """The histograms of the layers whose values somebody can read."""
    kept = [at for at in sorted(found) if found[at][0] > 0 and not np.isnan(found[at]).any()]
    if not kept:
        return None
    rows = np.stack([found[at] for at in kept])
    kept_names = tuple(names) if len(kept) == len(names) else tuple([names[at] for at in kept])
    return LayerHistograms(kept_names, rows[:, 1:].astype(np.int64), rows[:, 0])
