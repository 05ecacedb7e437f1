"""Arrow columns as numpy arrays, without pandas, which pyarrow's own `to_numpy` loads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Flags = npt.NDArray[np.bool_]


def as_numpy(column: Any) -> npt.NDArray[Any]:
    """A column of numbers or flags, [rows], in its own type; read-only where it is no copy.

    Null is NaN, which makes numbers float64, and False among flags. Raises TypeError for columns
    of anything else.
    """
    column = _whole(column)
    if pa.types.is_boolean(column.type):
        return _bits(column, 1) & is_seen(column)
    dtype = _dtype(column.type)
    data = column.buffers()[1]
    if data is None or not len(column):
        return np.empty(0, dtype)
    values = np.frombuffer(data, dtype, len(column), column.offset * dtype.itemsize)
    return np.where(is_seen(column), values, np.nan) if column.null_count else values


def is_seen(column: Any) -> Flags:
    """Which rows of a column are not null, [rows]."""
    column = _whole(column)
    if not column.null_count:
        return np.ones(len(column), np.bool_)
    return np.zeros(len(column), np.bool_) if pa.types.is_null(column.type) else _bits(column, 0)


def _dtype(kind: Any) -> np.dtype[Any]:
    letters = {"i": pa.types.is_signed_integer, "u": pa.types.is_unsigned_integer}
    for letter, fits in (letters | {"f": pa.types.is_floating}).items():
        if fits(kind):
            return np.dtype(f"{letter}{kind.bit_width // 8}")
    raise TypeError(f"got a column of {kind}; expected one of numbers or flags")


def _whole(column: Any) -> Any:
    if not isinstance(column, pa.ChunkedArray):
        return column
    chunks = column.chunks or [pa.nulls(0, column.type)]
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _bits(column: Any, buffer: int) -> Flags:
    """The flags in a buffer that holds a bit a row."""
    data = column.buffers()[buffer]
    if data is None:
        return np.zeros(0, np.bool_)
    end = column.offset + len(column)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=end, bitorder="little")
    return bits[column.offset :].view(np.bool_)
