from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from gradtrace import LayerHistograms
from gradtrace.records import MOMENT_COLUMNS, UPDATE_COLUMNS, LayerTable
from gradtrace.records.histograms import BINS
from gradtrace.runlog.layerrows import LayerEncoder, LayerRows
from gradtrace.runlog.schema import SCHEMAS


def table(names: tuple[str, ...], start: float = 0.0) -> LayerTable:
    values = np.arange(len(names) * 6, dtype=np.float64).reshape(-1, 6) + start
    return LayerTable(names, values, MOMENT_COLUMNS)


def histograms(*names: str, start: int = 0) -> LayerHistograms:
    counts = np.arange(len(names) * BINS).reshape(-1, BINS) + start
    return LayerHistograms(names, counts, np.exp2(np.arange(len(names)) + start))


def test_layer_tables_come_back_equal_while_names_grow() -> None:
    """Tables of different layers and row counts share batches and come back by step."""
    encoder = LayerEncoder("gradients")
    first, second = table(("a", "b")), table(("c", "a", "d"), 100.0)
    first.values[0, 1] = math.nan
    for pairs in ([(3, first)], [(5, first), (8, second)]):
        rows = LayerRows("gradients", encoder.encode(pairs))
        assert [rows.find(step) for step, _ in pairs] == [found for _, found in pairs]
        assert rows.find(4) is None
        assert rows.last == pairs[-1][0]


def test_columns_are_matched_by_name() -> None:
    """A table with fewer columns, or in another order, is stored under the right names."""
    odd = LayerTable(("a",), np.array([[0.5]]), ("ratio",))
    found = LayerRows("updates", LayerEncoder("updates").encode([(0, odd)])).find(0)
    assert found == LayerTable(("a",), np.array([[math.nan, 0.5]]), UPDATE_COLUMNS)


def test_a_table_of_the_wrong_shape_is_refused() -> None:
    """Values that do not fit the names raise, saying what was got and expected."""
    wrong = LayerTable(("a", "b"), np.zeros((1, 6)), MOMENT_COLUMNS)
    with pytest.raises(ValueError, match=r"\(1, 6\); expected 2 layers by 6 columns"):
        LayerEncoder("gradients").encode([(0, wrong)])


def test_names_that_change_every_step_do_not_pile_up() -> None:
    """The cache of name tuples is bounded."""
    encoder = LayerEncoder("gradients")
    for step in range(200):
        encoder.encode([(step, table((f"layer{step % 3}", str(step))))])
    assert len(encoder._indices) <= 64


def test_histograms_come_back_equal_while_names_grow() -> None:
    """Counts and limits of different layers share batches and come back by step."""
    encoder = LayerEncoder("histograms")
    first, second = histograms("a", "b"), histograms("c", "a", "d", start=7)
    for pairs in ([(3, first)], [(5, first), (8, second)]):
        rows = LayerRows("histograms", encoder.encode(pairs))
        assert [rows.find(step) for step, _ in pairs] == [found for _, found in pairs]
        assert rows.find(4) is None


def test_histograms_of_the_wrong_shape_are_refused() -> None:
    """Counts that do not fit the names or the bins raise, saying what was got and expected."""
    wrong = LayerHistograms(("a", "b"), np.zeros((2, 64), np.int64), np.ones(2))
    with pytest.raises(
        ValueError, match=rf"\(2, 64\) and \(2,\); expected 2 layers by {BINS} bins"
    ):
        LayerEncoder("histograms").encode([(0, wrong)])


def test_missing_counts_are_read_as_none() -> None:
    """Rows whose counts are null, as of a file that was damaged, have empty bins."""
    names = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["a", "b"]))
    some = [None, *range(1, BINS)]
    columns = [
        pa.array([4, 4]),
        names,
        pa.array([1.0, 2.0]),
        pa.array([None, some], SCHEMAS["histograms"].field("counts").type),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMAS["histograms"])
    found = LayerRows("histograms", batch).find(4)
    assert found == LayerHistograms(
        ("a", "b"), np.stack([np.zeros(BINS, np.int64), np.arange(BINS)]), np.array([1.0, 2.0])
    )
