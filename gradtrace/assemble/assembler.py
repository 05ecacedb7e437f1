"""From a sealed step and its values to a `StepRecord`; in the background thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradtrace.assemble.clipping import clip_of, sort_out
from gradtrace.handover.ids import plain
from gradtrace.handover.step import Batch, LateLog, RawStep, number, rows_of
from gradtrace.measure.rows import NORM, ROW, N, Positions, l2, statistics
from gradtrace.records import (
    ACTIVATION_COLUMNS,
    MOMENT_COLUMNS,
    UPDATE_COLUMNS,
    Array,
    BatchRef,
    LayerTable,
    StepRecord,
)
from gradtrace.records.histograms import LayerHistograms


class Assembler:
    """Makes records, in order. Keeps only what the next record needs from the last.

    Whole-table numpy calls, about 0.1 ms a step: the GIL is the training thread's.
    """

    def __init__(self, failed: Callable[[str, Exception], None] | None = None) -> None:
        self._failed = failed
        self._last_time: float | None = None
        self._late: dict[str, float] = {}
        self._subset: tuple[Any, Any, tuple[str, ...]] = (None, None, ())

    def late(self, log: LateLog, arrays: Sequence[Array]) -> dict[str, float]:
        """The values of a late `trace.log`."""
        return {name: number(value, arrays) for name, value in log.values.items()}

    def record(self, raw: RawStep, arrays: Sequence[Array]) -> StepRecord:
        """The record of one step; `arrays` are the values of its slots."""
        tables = _Tables(raw, arrays)
        norms = tables.joined("gradients")
        calls, norms = sort_out(raw, arrays, norms) if raw.readable else ([], norms)
        losses = tuple([float(arrays[slot].reshape(-1)[0]) for slot in raw.losses])
        scale = None if raw.scale is None else float(arrays[raw.scale].reshape(-1)[0])
        grad_norm = None
        gradients = None
        if norms is not None:
            positions, rows = norms
            grad_norm = l2(rows)
            gradients = self._parameter_table(raw, positions, statistics(rows), MOMENT_COLUMNS)
        clip = clip_of(calls, arrays, norms)
        if grad_norm is None and clip is not None and _covers(raw):
            grad_norm = clip.norm_before
        weights = tables.joined("weights")
        seconds = None if self._last_time is None else raw.time - self._last_time
        self._last_time = raw.time
        return StepRecord(
            step=raw.step,
            time=raw.time,
            seconds=seconds,
            loss=sum(losses) / len(losses) if losses and raw.readable else None,
            losses=losses if raw.readable else (),
            lr=tuple([number(value, arrays) for value in raw.lr]),
            grad_norm=grad_norm if raw.readable else None,
            clip=clip,
            batches=tuple([batch_ref(batch) for batch in raw.batches]),
            scale=scale,
            gradients=gradients,
            weights=None
            if weights is None
            else self._parameter_table(raw, weights[0], statistics(weights[1]), MOMENT_COLUMNS),
            activations=_module_table(raw, tables.summed("activations"), with_range=True),
            output_gradients=_module_table(
                raw, tables.summed("output_gradients"), with_range=False
            ),
            updates=self._updates(raw, tables.joined("updates"), weights),
            histograms=self._histograms(raw, arrays, norms),
            logged={name: number(value, arrays) for name, value in raw.logged.items()},
            rank=raw.rank,
            overhead=raw.overhead,
            remarks=raw.remarks,
            skipped=raw.skipped or any(arrays[slot].reshape(-1)[0] > 0 for slot in raw.found_inf),
        )

    def _histograms(
        self, raw: RawStep, arrays: Sequence[Array], read: _Rows | None
    ) -> LayerHistograms | None:
        """Of all layers whose gradients were read, or None; an error costs nothing else."""
        if not raw.histograms or not raw.readable or read is None:
            return None
        try:
            found = histograms_of(raw, arrays)
        except Exception as error:
            if self._failed is None:
                raise
            self._failed("the assembly of histograms", error)
            return None
        # Sums over some layers of a group would be wrong, and nobody could tell.
        whole = set(read[0].tolist()) <= found.keys()
        return None if not whole else _layer_histograms(raw.names["gradients"], found)

    def _parameter_table(
        self, raw: RawStep, positions: Positions, values: Array, columns: tuple[str, ...]
    ) -> LayerTable:
        """A row for every trained parameter, NaN where nothing was measured."""
        names, shown = raw.names["gradients"], raw.shown
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
        if self._subset[0] is not names or not np.array_equal(self._subset[1], shown):
            self._subset = (names, shown, tuple([names[i] for i in shown]))
        return LayerTable(self._subset[2], table, columns)

    def _updates(
        self, raw: RawStep, moved: _Rows | None, weights: _Rows | None
    ) -> LayerTable | None:
        if moved is None:
            return None
        positions, rows = moved
        values = np.full((len(rows), len(UPDATE_COLUMNS)), np.nan)
        values[:, 0] = rows[:, NORM]
        if weights is not None:
            sizes = np.full(len(raw.names["gradients"]), np.nan)
            sizes[weights[0]] = weights[1][:, NORM]
            with np.errstate(all="ignore"):
                values[:, 1] = rows[:, NORM] / sizes[positions]
        # |update| / 0 is no ratio.
        values[~np.isfinite(values[:, 1]), 1] = np.nan
        return self._parameter_table(raw, positions, values, UPDATE_COLUMNS)


_Rows = tuple[Positions, Array]


class _Tables:
    """The rows of a step's measurements."""

    def __init__(self, raw: RawStep, arrays: Sequence[Array]) -> None:
        self._raw, self._arrays = raw, arrays

    def joined(self, table: str) -> _Rows | None:
        """One row a layer; a later measurement of a layer replaces an earlier one."""
        found = [rows_of(r, self._arrays) for name, r in self._raw.tables if name == table]
        if not found:
            return None
        if len(found) == 1:
            return found[0]
        size = 1 + max((int(p.max()) for p, _ in found if len(p)), default=-1)
        full = np.full((size, len(ROW)), np.nan)
        for positions, rows in found:
            full[positions] = rows
        positions = np.flatnonzero(~np.isnan(full[:, N])).astype(np.intp)
        return positions, full[positions]

    def summed(self, table: str) -> _Rows | None:
        """One row a layer over all measurements of the step."""
        readings = [r for name, some in self._raw.tables if name == table for r in some]
        return rows_of(readings, self._arrays) if readings else None


def _covers(raw: RawStep) -> bool:
    """Whether one plain L2 clip saw every trained parameter."""
    return (
        len(raw.clips) == 1
        and raw.clips[0].order == 2.0
        and set(raw.shown.tolist()) <= set(raw.clips[0].positions)
    )


def _module_table(raw: RawStep, found: _Rows | None, *, with_range: bool) -> LayerTable | None:
    if found is None:
        return None
    positions, rows = found
    names = raw.names["modules"]
    if len(positions) != len(names):
        names = tuple([names[i] for i in positions])
    columns = ACTIVATION_COLUMNS if with_range else MOMENT_COLUMNS
    return LayerTable(names, statistics(rows, with_range=with_range), columns)


def histograms_of(raw: RawStep, arrays: Sequence[Array]) -> dict[int, Array]:
    """Limit and counts by position; a later measurement of a layer replaces an earlier one."""
    found: dict[int, Array] = {}
    for reading in raw.histograms:
        positions, rows = reading.decode(arrays[reading.start : reading.stop])
        if reading.divisor is not None:
            with np.errstate(all="ignore"):
                rows[:, 0] /= float(arrays[reading.divisor].reshape(-1)[0])
        found |= zip(positions.tolist(), rows, strict=True)
    return found


def _layer_histograms(names: Sequence[str], found: Mapping[int, Array]) -> LayerHistograms | None:
    # Of values that nobody can read nothing is known.
    kept = [at for at in sorted(found) if found[at][0] > 0 and not np.isnan(found[at]).any()]
    if not kept:
        return None
    rows = np.stack([found[at] for at in kept])
    kept_names = tuple(names) if len(kept) == len(names) else tuple([names[at] for at in kept])
    return LayerHistograms(kept_names, rows[:, 1:].astype(np.int64), rows[:, 0])


def batch_ref(batch: Batch) -> BatchRef:
    """The batch with its ids as plain ints and strings."""
    return BatchRef(batch.epoch, batch.batch_index, batch.ordinal, plain(batch.sample_ids))
