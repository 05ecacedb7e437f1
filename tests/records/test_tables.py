"""Tables of layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gradtrace.records import (
    ACTIVATION_COLUMNS,
    HISTOGRAMS,
    LAYER_TABLES,
    MOMENT_COLUMNS,
    TABLE_COLUMNS,
    UPDATE_COLUMNS,
    LayerTable,
    StepRecord,
)

NAMES = ("a", "b", "c")
TABLE = LayerTable(NAMES, np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]]), ("norm", "ratio"))


def test_the_tables_are_those_of_the_contract() -> None:
    """Their names, columns and order, which files on disk depend on."""
    assert LAYER_TABLES == (
        "gradients", "weights", "activations", "output_gradients", "updates", "histograms",
    )  # fmt: skip
    assert MOMENT_COLUMNS == ("norm", "mean", "std", "max_abs", "zero_fraction", "nonfinite")
    assert (*MOMENT_COLUMNS, "min", "max") == ACTIVATION_COLUMNS
    assert UPDATE_COLUMNS == ("norm", "ratio")
    assert {name for name, columns in TABLE_COLUMNS.items() if columns == MOMENT_COLUMNS} == {
        "gradients", "weights", "output_gradients",
    }  # fmt: skip
    assert HISTOGRAMS not in TABLE_COLUMNS
    assert set(LAYER_TABLES) <= {field.name for field in dataclasses.fields(StepRecord)}


def test_cells_and_columns_are_found_by_name() -> None:
    """`table[layer, column]` is a Python float, `column` a view of all layers'."""
    assert TABLE["b", "norm"] == 3.0 and type(TABLE["b", "norm"]) is float
    assert TABLE.column("norm").tolist() == [1.0, 3.0, 5.0]
    assert TABLE.column("ratio").base is not None and np.isnan(TABLE["b", "ratio"])
    assert (len(TABLE), TABLE.nbytes) == (3, 48)


def test_what_is_not_there_is_told_with_what_is() -> None:
    """Unknown layers and columns raise KeyError; a long list of layers is cut."""
    with pytest.raises(KeyError, match="no layer 'x' in this table; it has: a, b, c"):
        TABLE["x", "norm"]
    with pytest.raises(KeyError, match="no column 'mean' in this table; it has: norm, ratio"):
        TABLE["a", "mean"]
    many = LayerTable(tuple(f"l{k}" for k in range(9)), np.zeros((9, 1)), ("norm",))
    with pytest.raises(KeyError, match=r"l0, .*, l7, \.\.\."):
        many["x", "norm"]


def test_equal_tables_are_equal() -> None:
    """Names, columns and values, of which NaN equals NaN."""
    same = LayerTable(NAMES, TABLE.values.copy(), TABLE.columns)
    assert same == TABLE
    other = TABLE.values.copy()
    other[0, 0] = 9.0
    assert LayerTable(NAMES, other, TABLE.columns) != TABLE
    assert LayerTable(("a", "b", "d"), TABLE.values, TABLE.columns) != TABLE
    assert LayerTable(NAMES, TABLE.values, ("norm", "mean")) != TABLE
    assert TABLE != "a table"


def test_a_table_is_frozen_and_no_key() -> None:
    """Fields cannot be set, and what holds arrays has no hash."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        TABLE.names = ()  # type: ignore[misc]
    with pytest.raises(TypeError, match="unhashable"):
        hash(TABLE)
