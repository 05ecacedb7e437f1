"""The accelerator plan, run on CPU tensors, against a float64 computation."""

from __future__ import annotations

import math
import random

import pytest
import torch
from gradients import CASES, any_tensor
from torch import Tensor
from truth import compare, rows_of

from gradtrace.measure import foreach
from gradtrace.measure.rows import statistics
from gradtrace.records import MOMENT_COLUMNS

BEYOND = {
    "huge": "float32 squares overflow",
    "small_huge": "the same",
    "tiny": "they vanish",
    "small_tiny": "the same",
    "float64": "float32 counts",
    "mean_far_above_std": "float32 sums lose the spread",
    "sparse": "read by chunks",
}
"""Cases that a plan which never looks at a value has no way to get right."""

ALWAYS = ("norm", "max_abs", "nonfinite")
"""What is measured on every step; the rest on full readings only."""


def check(tensors: list[Tensor], *, full: bool) -> None:
    with torch.no_grad():
        rows = rows_of(foreach.read_foreach(range(len(tensors)), tensors, full=full))
    assert list(rows) == list(range(len(tensors)))
    for position, tensor in enumerate(tensors):
        found = dict(zip(MOMENT_COLUMNS, statistics(rows[position][None])[0], strict=True))
        columns = MOMENT_COLUMNS if full else ALWAYS
        # A CPU's own float32 norms are no better over a million values.
        compare(columns, [found[column] for column in columns], tensor, rel=1e-4)
        if tensor.numel():
            assert all(math.isnan(value) for name, value in found.items() if name not in columns)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("case", [case for case in CASES if case not in BEYOND])
def test_every_kind_equals_the_truth(case: str, full: bool) -> None:
    """Each listed type, layout and size; what was not asked for is NaN."""
    torch.manual_seed(0)
    check([CASES[case]()], full=full)


@pytest.mark.parametrize("piece", [foreach.PIECE, 64])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_any_tensors_equal_the_truth(
    seed: int, full: bool, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn at random, several at a time and of mixed types, whole or in pieces."""
    monkeypatch.setattr(foreach, "PIECE", piece)
    torch.manual_seed(seed)
    chance = random.Random(seed)
    for _ in range(20):
        check([any_tensor(chance, huge=False) for _ in range(8)], full=full)


def test_the_memory_of_differences_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of the list hold at most so many values, each tensor once and in order."""
    monkeypatch.setattr(foreach, "PIECE", 100)
    sizes = [60, 40, 1, 100, 99, 2, 30]
    slices = foreach._slices([torch.empty(n) for n in sizes])
    assert [[piece.numel() for piece in some] for some in slices] == [
        [60, 40],
        [1],
        [100],
        [99],
        [2, 30],
    ]
