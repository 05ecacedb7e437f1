"""From sums to statistics: the numpy side of a measurement, run in the background thread.

A measurement leaves raw sums per layer, or per chunk of a layer, in rows of `ROW` columns. Here
they are added up in float64 and turned into the columns of a `LayerTable`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gradtrace.records import ACTIVATION_COLUMNS, MOMENT_COLUMNS, Array

Positions = npt.NDArray[np.intp]

ROW = ("n", "sum", "norm", "min", "max", "abs", "nonzero", "bad")
N, SUM, NORM, MIN, MAX, ABS, NONZERO, BAD = range(len(ROW))
_ADDED = [N, SUM, NONZERO, BAD]
_RAISED = [MAX, ABS]

# Below this share of mean^2 a float64 variance from sums is rounding, not spread.
_RESOLUTION = 1e-13


def gather(positions: Positions, rows: Array) -> tuple[Positions, Array]:
    """Joins rows of the same position into one, ordered by position."""
    if np.all(positions[1:] > positions[:-1]):
        return positions, rows
    if np.any(positions[1:] < positions[:-1]):
        order = np.argsort(positions, kind="stable")
        positions, rows = positions[order], rows[order]
    first = np.flatnonzero(np.r_[True, positions[1:] != positions[:-1]])
    if len(first) == len(positions):
        return positions, rows
    joined = np.empty((len(first), len(ROW)))
    with np.errstate(over="ignore", invalid="ignore"):  # Inf - Inf is NaN, and told by `bad`
        joined[:, _ADDED] = np.add.reduceat(rows[:, _ADDED], first, axis=0)
        joined[:, _RAISED] = np.maximum.reduceat(rows[:, _RAISED], first, axis=0)
        joined[:, MIN] = np.minimum.reduceat(rows[:, MIN], first)
        joined[:, NORM] = np.sqrt(np.add.reduceat(np.square(rows[:, NORM]), first))
    return positions[first], joined


def statistics(rows: Array, *, with_range: bool = False) -> Array:
    """Rows to columns: `MOMENT_COLUMNS`, or `ACTIVATION_COLUMNS` when `with_range`.

    `std = sqrt(norm^2/n - mean^2)`. Empty layers (n = 0) have norm 0 and no other value.
    """
    columns = ACTIVATION_COLUMNS if with_range else MOMENT_COLUMNS
    out = np.full((len(rows), len(columns)), np.nan)
    with np.errstate(all="ignore"):
        n = rows[:, N]
        mean = rows[:, SUM] / n
        square = np.square(mean)
        variance = np.square(rows[:, NORM]) / n - square
        # A constant tensor differs from zero variance only by rounding.
        variance = np.where(variance <= _RESOLUTION * square, 0.0, variance)
        out[:, 0] = rows[:, NORM]
        out[:, 1] = mean
        out[:, 2] = np.sqrt(variance)
        out[:, 3] = rows[:, ABS]
        out[:, 4] = 1.0 - rows[:, NONZERO] / n
        out[:, 5] = rows[:, BAD]
        if with_range:
            out[:, 6] = rows[:, MIN]
            out[:, 7] = rows[:, MAX]
    out[rows[:, N] == 0, 3:5] = np.nan
    return out


def unscale(rows: Array, divisor: float) -> Array:
    """The rows of values that were multiplied by `divisor`, brought back to their own size."""
    if divisor != 1.0:
        with np.errstate(all="ignore"):
            rows[:, [SUM, NORM, MIN, MAX, ABS]] /= divisor
    return rows


def l2(rows: Array) -> float:
    """The L2 norm of all layers together; NaN and Inf spread."""
    with np.errstate(over="ignore"):
        return math.sqrt(float(np.sum(np.square(rows[:, NORM]))))
