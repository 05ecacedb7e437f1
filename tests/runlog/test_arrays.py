"""Arrow columns as numpy arrays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gradtrace.runlog.arrays import as_numpy, is_seen

COLUMNS: dict[str, Any] = {
    "floats": pa.array([1.5, -0.0, float("inf")]),
    "floats with null": pa.array([1.5, None, float("nan")]),
    "float32": pa.array([0.1, 0.2], pa.float32()),
    "ints": pa.array([2**60, -3, 0]),
    "ints with null": pa.array([None, 7], pa.int32()),
    "flags": pa.array([True, False, True] * 7),
    "flags with null": pa.array([True, None, False] * 7),
    "chunks": pa.chunked_array([[1, 2], [], [None, 4]], pa.int64()),
    "no chunks": pa.chunked_array([], pa.float64()),
    "nothing": pa.array([], pa.int64()),
    "nulls": pa.nulls(3, pa.float64()),
}


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("name", COLUMNS)
def test_values_are_those_of_pyarrow(name: str, start: int) -> None:
    """Also of slices, which begin within a buffer; null is NaN, or False among flags."""
    column = COLUMNS[name].slice(start)
    flags = pa.types.is_boolean(column.type)
    expected = [(False if flags else np.nan) if v is None else v for v in column.to_pylist()]
    found = as_numpy(column)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == (bool if flags else found.dtype)
    assert is_seen(column).tolist() == [v is not None for v in column.to_pylist()]


def test_the_type_is_kept_without_null() -> None:
    """Large integers are exact, and nothing is copied."""
    assert as_numpy(COLUMNS["ints"]).dtype == np.int64
    assert as_numpy(COLUMNS["ints"])[0] == 2**60
    assert as_numpy(COLUMNS["float32"]).dtype == np.float32
    assert not as_numpy(COLUMNS["floats"]).flags.owndata


def test_text_is_refused() -> None:
    """What is neither numbers nor flags is named."""
    with pytest.raises(TypeError, match="got a column of string"):
        as_numpy(pa.array(["a"]))


def test_reading_a_run_loads_no_pandas() -> None:
    """Neither its tables nor its records nor its summary need it, which takes half a second."""
    pytest.importorskip("pandas")
    stored = Path(__file__).parents[1] / "data" / "before-the-move"
    code = (
        "import sys\n"
        "from gradtrace.runlog.reader import load_run\n"
        "from gradtrace.runlog.status import list_runs\n"
        "from gradtrace.report.summary import summarize\n"
        f"run = load_run({str(stored)!r})\n"
        "assert len(list(run.records())) == 95 and run.histograms.num_rows == 12\n"
        "assert summarize(run).steps == 80\n"
        "list_runs(run.path.parent)\n"
        "print(*{'pandas', 'torch', 'matplotlib'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
