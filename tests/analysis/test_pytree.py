"""Tensors in nested batches."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from gradtrace.analysis.pytree import map_tensors, tensors_in


class Pair(NamedTuple):
    x: Any
    y: Any


A, B, C, D = (torch.full((2,), float(k)) for k in range(4))
NESTED = {"p": Pair(A, [B, "text", None]), "q": MappingProxyType({"deep": (C, 3)}), "r": [D]}


def test_tensors_come_depth_first() -> None:
    """From tuples, lists, named tuples and mappings, in their order, and nothing else."""
    found = list(tensors_in(NESTED))
    assert [a is b for a, b in zip(found, [A, B, C, D], strict=True)] == [True] * 4
    assert list(tensors_in(A)) == [A]
    assert list(tensors_in("text")) == list(tensors_in(None)) == list(tensors_in({})) == []


def test_the_nesting_stays() -> None:
    """Each tensor is replaced in its place, in the order of `tensors_in`; the rest is as it was."""
    seen: list[float] = []

    def number(tensor: torch.Tensor) -> int:
        seen.append(float(tensor[0]))
        return len(seen)

    mapped = map_tensors(number, NESTED)
    assert mapped == {"p": Pair(1, [2, "text", None]), "q": {"deep": (3, 3)}, "r": [4]}
    assert isinstance(mapped["p"], Pair) and isinstance(mapped["q"]["deep"], tuple)
    assert seen == [float(tensor[0]) for tensor in tensors_in(NESTED)]


def test_the_batch_is_not_written_into() -> None:
    """The mapped batch is a new one."""
    batch = [A, {"x": B}]
    mapped = map_tensors(lambda tensor: tensor + 10, batch)
    assert batch[0] is A and batch[1] == {"x": B} and mapped is not batch
    assert mapped[0].tolist() == [10.0, 10.0]
