"""Rows of measurements become tables: a row for each layer, whatever was measured how often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gradtrace.assemble.readings import (
    ParameterTables,
    histograms_of,
    joined,
    layer_histograms,
    module_table,
    rows_of,
    summed,
)
from gradtrace.handover.step import Step
from gradtrace.measure.reading import Pending, Reading
from gradtrace.measure.rows import ABS, MAX, MIN, NONZERO, NORM, ROW, SUM, N, Positions
from gradtrace.records import ACTIVATION_COLUMNS, MOMENT_COLUMNS, UPDATE_COLUMNS, Array
from gradtrace.records.histograms import BINS
from gradtrace.sampling import Sampling

DUE = Sampling().due(0)
NAMES = ("a", "b", "c", "d")


def row(*values: float) -> Array:
    """The row of a layer with these values."""
    x = np.asarray(values, dtype=np.float64)
    out = np.zeros(len(ROW))
    out[[N, SUM, NORM]] = len(x), x.sum(), np.sqrt((x * x).sum())
    out[[MIN, MAX, ABS]] = x.min(), x.max(), np.abs(x).max()
    out[NONZERO] = np.count_nonzero(x)
    return out


def reading(positions: Sequence[int], rows: Sequence[Array], scale: float | None = None) -> Reading:
    """One whose values have arrived."""

    def decode(arrays: Sequence[Array]) -> tuple[Positions, Array]:
        return np.asarray(positions, dtype=np.intp), np.stack(rows)

    made = Reading([], decode)
    if scale is not None:
        made.divisor = Pending(torch.tensor(scale))
        made.divisor.arrived(np.asarray(scale))
    return made


def step(*tables: tuple[str, list[Reading]], shown: Sequence[int] = (0, 1, 2, 3)) -> Step:
    return Step(
        DUE, tables=list(tables), names=NAMES, modules=NAMES, shown=np.asarray(shown, dtype=np.intp)
    )


def test_chunks_of_a_layer_are_one_row() -> None:
    """However the values of a layer were cut and in whatever order they come."""
    positions, rows = rows_of(
        [reading([2, 0], [row(1, 2), row(5)]), reading([2], [row(-7, 0)], scale=None)]
    )
    assert positions.tolist() == [0, 2]
    assert np.allclose(rows, [row(5), row(1, 2, -7, 0)])
    empty, none = rows_of([])
    assert len(empty) == 0 and none.shape == (0, len(ROW))


def test_the_scale_is_each_readings_own() -> None:
    """Of two readings one may be multiplied by a loss scale and the other not."""
    _, rows = rows_of([reading([0], [row(8, 16)], scale=8.0), reading([1], [row(3)])])
    assert np.allclose(rows, [row(1, 2), row(3)])


def test_a_later_measurement_replaces_an_earlier_one() -> None:
    """Of a layer measured twice the last counts; others keep what they have."""
    measured = step(
        ("gradients", [reading([0, 1], [row(1), row(2)])]),
        ("weights", [reading([0], [row(99)])]),
        ("gradients", [reading([1, 3], [row(20), row(4)])]),
    )
    found = joined(measured, "gradients")
    assert found is not None
    assert found[0].tolist() == [0, 1, 3] and np.allclose(found[1], [row(1), row(20), row(4)])
    assert joined(measured, "updates") is None
    empty = joined(step(("gradients", []), ("gradients", [])), "gradients")
    assert empty is not None and len(empty[0]) == 0


def test_pieces_of_a_step_are_summed_at_modules() -> None:
    """A module that ran twice has the statistics of all its values."""
    ran = step(
        ("activations", [reading([3, 1], [row(1, 2), row(5)])]),
        ("activations", [reading([3], [row(-6)])]),
    )
    found = summed(ran, "activations")
    assert found is not None and np.allclose(found[1], [row(5), row(1, 2, -6)])
    table = module_table(ran, "activations", with_range=True)
    assert table is not None and table.names == ("b", "d") and table.columns == ACTIVATION_COLUMNS
    assert table["d", "mean"] == -1.0 and (table["d", "min"], table["d", "max"]) == (-6.0, 2.0)
    assert module_table(ran, "output_gradients", with_range=False) is None


def test_every_trained_parameter_has_a_row() -> None:
    """Unmeasured ones are NaN, frozen ones left out, and measured frozen ones shown."""
    tables = ParameterTables()
    found = rows_of([reading([1, 2], [row(3), row(4)])])
    table = tables.moments(step(shown=(0, 1, 3)), found)
    assert table is not None and table.columns == MOMENT_COLUMNS
    assert table.names == ("a", "b", "c", "d")
    assert np.isnan(table.values).all(axis=1).tolist() == [True, False, False, True]
    table = tables.moments(step(shown=(1, 3)), rows_of([reading([1], [row(3)])]))
    assert table is not None and table.names == ("b", "d") and table["b", "norm"] == 3.0
    assert tables.moments(step(), None) is None


def test_tables_of_a_run_share_their_names() -> None:
    """As long as the same layers are shown, names are one object."""
    tables = ParameterTables()
    found = rows_of([reading([1], [row(3)])])
    first, second = (tables.moments(step(shown=(1, 3)), found) for _ in range(2))
    other = tables.moments(step(shown=(1, 2)), found)
    assert first is not None and second is not None and other is not None
    assert first.names is second.names and other.names == ("b", "c")


def test_updates_are_related_to_weights() -> None:
    """|update| / |weight|; NaN where the weight is zero or was not measured."""
    moved = rows_of([reading([0, 1, 2], [row(3, 4), row(1), row(2)])])
    weights = rows_of([reading([0, 1], [row(6, 8), row(0)])])
    table = ParameterTables().updates(step(shown=(0, 1, 2)), moved, weights)
    assert table is not None and table.columns == UPDATE_COLUMNS
    assert table.column("norm").tolist() == [5.0, 1.0, 2.0]
    assert table["a", "ratio"] == 0.5
    assert np.isnan(table["b", "ratio"]) and np.isnan(table["c", "ratio"])
    alone = ParameterTables().updates(step(shown=(0, 1, 2)), moved, None)
    assert alone is not None and np.isnan(alone.column("ratio")).all()
    assert ParameterTables().updates(step(), None, weights) is None


def counts(limit: float, *first: float) -> Array:
    out = np.zeros(1 + BINS)
    out[0] = limit
    out[1 : 1 + len(first)] = first
    return out


def test_histograms_are_of_the_last_measurement() -> None:
    """Limits come without the loss scale, counts are what they are."""
    counted = step()
    counted.histograms = [
        (frozenset({0, 1}), [reading([0, 1], [counts(8, 1), counts(4, 2)], scale=4.0)]),
        (frozenset({1}), [reading([1], [counts(3, 5)])]),
    ]
    found = histograms_of(counted)
    assert found.keys() == {0, 1}
    assert (found[0][0], found[0][1]) == (2.0, 1.0) and (found[1][0], found[1][1]) == (3.0, 5.0)


@pytest.mark.parametrize("bad", [counts(0.0), counts(float("nan")), counts(1.0, float("nan"))])
def test_layers_without_a_limit_have_no_histogram(bad: Array) -> None:
    """Zeros, NaN and what nobody can read are left out, by name."""
    found = layer_histograms(NAMES, {2: counts(1.5, 7), 0: bad, 1: counts(0.5, 1)})
    assert found is not None and found.names == ("b", "c")
    assert found.limits.tolist() == [0.5, 1.5] and found.counts[:, 0].tolist() == [1, 7]
    assert layer_histograms(NAMES, {0: bad}) is None and layer_histograms(NAMES, {}) is None
    whole = layer_histograms(("x", "y"), {1: counts(1.0), 0: counts(2.0)})
    assert whole is not None and whole.names == ("x", "y")
