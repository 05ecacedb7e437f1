"""The statistics of a tensor the plain way: in float64, by numpy, sums exact.

Nothing here is shared with `gradtrace.measure`, which is checked against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from readings import decoded
from torch import Tensor

from gradtrace.measure.reading import Reading
from gradtrace.measure.rows import gather

Floats = npt.NDArray[np.float64]


def values_of(tensor: Tensor) -> Floats:
    """All values, in float64; of a complex tensor real and imaginary parts."""
    dense = tensor.detach()
    if dense.layout is not torch.strided:
        dense = dense.to_dense()
    real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    return real.double().resolve_neg().numpy().ravel()


def statistics_of(tensor: Tensor) -> dict[str, float]:
    """Every column there is; of an empty tensor those that it has."""
    x = values_of(tensor)
    n = x.size
    if n == 0:
        return {"norm": 0.0, "nonfinite": 0.0}
    finite = bool(np.isfinite(x).all())
    with np.errstate(all="ignore"):
        squares = x * x
        return {
            "norm": math.sqrt(math.fsum(squares) if finite else float(np.sum(squares))),
            "mean": math.fsum(x) / n if finite else float(np.mean(x)),
            "std": float(np.std(x)),
            "max_abs": float(np.max(np.abs(x))),
            "zero_fraction": float(np.count_nonzero(x == 0)) / n,
            "nonfinite": float(np.count_nonzero(~np.isfinite(x))),
            "min": float(np.min(x)),
            "max": float(np.max(x)),
        }


def compare(
    columns: Sequence[str],
    found: Sequence[float] | Floats,
    tensor: Tensor,
    *,
    rel: float = 1e-5,
) -> None:
    """Asserts that a row of statistics is that of the tensor, as exactly as each can be.

    `rel` is how far norms, means and limits may be off, relative to themselves: tiny ones, too.
    """
    expected = statistics_of(tensor)
    size = max(expected.get("max_abs", 0.0), 1e-300)
    for column, got in zip(columns, found, strict=True):
        told = f"{column} of {tensor.dtype} {tuple(tensor.shape)}"
        want = expected.get(column, math.nan)
        if not math.isfinite(want):
            assert got == want or (math.isnan(got) and math.isnan(want)), (told, got, want)
        elif column in ("nonfinite", "zero_fraction"):
            assert got == pytest.approx(want, abs=1e-12), told
        elif column == "std":
            # Far below the mean it is a small difference of large sums.
            if abs(expected["mean"]) < 100 * want:
                assert got == pytest.approx(want, rel=1e-3, abs=0.0), told
        elif column == "mean":
            # Relative to the values: a mean near zero is a difference of large sums.
            assert got == pytest.approx(want, rel=rel, abs=1e-7 * size), told
        else:
            assert got == pytest.approx(want, rel=rel, abs=0.0), told


def rows_of(readings: Sequence[Reading]) -> dict[int, Floats]:
    """What readings decode to: a row of sums for each layer's position."""
    parts = [decoded(reading) for reading in readings]
    if not parts:
        return {}
    positions, rows = gather(
        np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    )
    return {int(position): row for position, row in zip(positions, rows, strict=True)}
