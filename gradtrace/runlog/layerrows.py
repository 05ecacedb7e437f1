"""What a step knows of its layers, as Arrow batches: a row a layer and step, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradtrace.records import HISTOGRAMS, TABLE_COLUMNS, Array, LayerTable
from gradtrace.records.histograms import BINS, LayerHistograms
from gradtrace.runlog.arrays import as_numpy, is_seen
from gradtrace.runlog.schema import SCHEMAS

Layers = LayerTable | LayerHistograms


class LayerEncoder:
    """Turns one table's layers into batches that share one growing dictionary of names."""

    def __init__(self, table: str) -> None:
        self._schema = SCHEMAS[table]
        self._columns = TABLE_COLUMNS.get(table, ())
        self._positions: dict[str, int] = {}
        self._dictionary = pa.array([], pa.string())
        self._indices: dict[tuple[str, ...], npt.NDArray[np.int32]] = {}

    def encode(self, tables: Sequence[tuple[int, Any]]) -> Any:
        """One batch for `(step, layers)` pairs; at least one pair. A few whole-array calls.

        Columns are matched by name, absent ones become NaN. Raises ValueError for values that are
        not [layers, columns], and counts not [layers, BINS].
        """
        if self._columns:
            values = np.concatenate([_values(table, self._columns) for _, table in tables])
            columns = [pa.array(column) for column in np.ascontiguousarray(values.T)]
        else:
            columns = _histogram_columns([layers for _, layers in tables])
        indices = [self._index(layers.names) for _, layers in tables]
        steps = np.repeat(
            np.array([step for step, _ in tables], np.int64), [len(index) for index in indices]
        )
        if len(self._dictionary) != len(self._positions):
            # Arrow wants UTF-8; a name with a lone surrogate is stored escaped.
            text = [n.encode("utf-8", "backslashreplace").decode() for n in self._positions]
            self._dictionary = pa.array(text, pa.string())
        names = pa.DictionaryArray.from_arrays(np.concatenate(indices), self._dictionary)
        return pa.RecordBatch.from_arrays([pa.array(steps), names, *columns], schema=self._schema)

    def _index(self, names: tuple[str, ...]) -> npt.NDArray[np.int32]:
        index = self._indices.get(names)
        if index is None:
            if len(self._indices) >= 64:  # names that change every step must not pile up
                self._indices.clear()
            positions = self._positions
            index = np.array([positions.setdefault(n, len(positions)) for n in names], np.int32)
            self._indices[names] = index
        return index


def _values(table: LayerTable, columns: tuple[str, ...]) -> Array:
    values = np.asarray(table.values, np.float64)
    if values.shape != (len(table.names), len(table.columns)):
        raise ValueError(
            f"layer table of shape {values.shape}; expected {len(table.names)} layers by "
            f"{len(table.columns)} columns"
        )
    if table.columns == columns:
        return values
    missing = np.full(len(table.names), np.nan)
    known = dict(zip(table.columns, values.T, strict=True))
    return np.stack([known.get(column, missing) for column in columns], axis=1)


def _histogram_columns(histograms: Sequence[LayerHistograms]) -> list[Any]:
    for some in histograms:
        if some.counts.shape != (len(some), BINS) or some.limits.shape != (len(some),):
            raise ValueError(
                f"histograms of shapes {some.counts.shape} and {some.limits.shape}; expected "
                f"{len(some)} layers by {BINS} bins and as many limits"
            )
    limits = np.concatenate([some.limits for some in histograms])
    counts = np.concatenate([some.counts for some in histograms]).astype(np.int64, copy=False)
    return [pa.array(limits), pa.FixedSizeListArray.from_arrays(pa.array(counts.ravel()), BINS)]


class LayerRows:
    """One batch of layers, ready to be asked for a step; the inverse of `LayerEncoder`."""

    def __init__(self, table: str, batch: Any) -> None:
        self._table = table
        self._names = batch.column("layer").dictionary.to_pylist()
        self._indices = as_numpy(batch.column("layer").indices)
        floats = ("limit",) if table == HISTOGRAMS else TABLE_COLUMNS[table]
        self._values = np.stack([as_numpy(batch.column(c)) for c in floats], axis=1)
        self._counts = _counts(batch.column("counts")) if table == HISTOGRAMS else None
        steps = as_numpy(batch.column("step"))
        self._steps, self._starts = np.unique(steps, return_index=True)
        self._ends = np.append(self._starts[1:], len(steps))
        self._known: tuple[npt.NDArray[np.int32], tuple[str, ...]] | None = None
        self.last = int(self._steps[-1]) if len(steps) else -1

    def find(self, step: int) -> Layers | None:
        """The layers of `step`, None when it is not in this batch. Copies its rows."""
        at = int(np.searchsorted(self._steps, step))
        if at >= len(self._steps) or self._steps[at] != step:
            return None
        rows = slice(int(self._starts[at]), int(self._ends[at]))
        index = self._indices[rows]
        if self._known is None or not np.array_equal(self._known[0], index):
            self._known = (index, tuple(self._names[i] for i in index))
        names, values = self._known[1], self._values[rows].copy()
        if self._counts is not None:
            return LayerHistograms(names, self._counts[rows].copy(), values[:, 0])
        return LayerTable(names, values, TABLE_COLUMNS[self._table])


def _counts(column: Any) -> npt.NDArray[np.int64]:
    """The counts [rows, BINS]; zeros where there are none."""
    if not column.null_count and not column.flatten().null_count:
        whole: npt.NDArray[np.int64] = as_numpy(column.flatten()).reshape(-1, BINS)
        return whole
    counts = np.zeros((len(column), BINS), np.int64)
    counts[is_seen(column)] = np.nan_to_num(as_numpy(column.flatten())).reshape(-1, BINS)
    return counts


def no_layers(table: str) -> Layers:
    """A table without layers, as it was written."""
    if table == HISTOGRAMS:
        return LayerHistograms((), np.empty((0, BINS), np.int64), np.empty(0))
    columns = TABLE_COLUMNS[table]
    return LayerTable((), np.empty((0, len(columns))), columns)
