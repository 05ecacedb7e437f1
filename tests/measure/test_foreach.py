"""The accelerator plan, run on CPU tensors, against a float64 computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from readings import decoded
from torch import Tensor

from gradtrace.measure import foreach
from gradtrace.measure.rows import gather, statistics
from gradtrace.records import MOMENT_COLUMNS, Array


def tensors() -> list[Tensor]:
    torch.manual_seed(0)
    with_zeros = torch.randn(40, 50)
    with_zeros[with_zeros.abs() < 0.3] = 0
    bad = torch.randn(30, 30)
    bad[0, :3] = math.nan
    bad[1, 0] = math.inf
    return [
        torch.randn(300, 200),
        torch.randn(17).bfloat16(),
        with_zeros.half(),
        bad,
        torch.randn(12, 5).double(),
        torch.randn(6, 7, dtype=torch.complex64),
        torch.randn(60, 70).t(),
        torch.empty(0, 3),
    ]


def measured(some: list[Tensor], *, full: bool) -> Array:
    with torch.no_grad():
        readings = foreach.read_foreach(range(len(some)), some, full=full)
    parts = [decoded(r) for r in readings]
    positions, rows = gather(
        np.concatenate([p for p, _ in parts]), np.concatenate([r for _, r in parts])
    )
    assert positions.tolist() == list(range(len(some)))
    return statistics(rows)


def truth(tensor: Tensor) -> dict[str, float]:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    x = real.double().numpy().ravel()
    with np.errstate(all="ignore"):
        return {
            "norm": float(np.sqrt(np.sum(x * x))),
            "mean": float(x.mean()),
            "std": float(x.std()),
            "max_abs": float(np.abs(x).max()),
            "zero_fraction": float(np.mean(x == 0)),
            "nonfinite": float(np.sum(~np.isfinite(x))),
        }


@pytest.mark.parametrize("piece", [foreach.PIECE, 64])
@pytest.mark.parametrize("full", [True, False])
def test_the_plan_equals_the_truth(full: bool, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every column it measures is right for every type, whole or in pieces; the rest is NaN."""
    monkeypatch.setattr(foreach, "PIECE", piece)
    some = tensors()
    found = measured(some, full=full)
    for row, tensor in zip(found, some, strict=True):
        if tensor.numel() == 0:
            assert row[0] == 0.0
            continue
        expected = truth(tensor)
        for column, got in zip(MOMENT_COLUMNS, row, strict=True):
            if (column in ("mean", "std", "zero_fraction") and not full) or math.isnan(
                expected[column]
            ):
                assert math.isnan(got), column
            elif column in ("zero_fraction", "nonfinite"):
                assert got == pytest.approx(expected[column], abs=1e-9), column
            else:
                assert got == pytest.approx(expected[column], rel=1e-4, abs=1e-6), column
