"""Sample ids become plain ints and texts, whatever they were delivered as."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gradtrace.handover.ids import plain


class Named:
    """An object whose text may fail."""

    def __init__(self, text: str | None) -> None:
        self._text = text

    def __str__(self) -> str:
        if self._text is None:
            raise RuntimeError("no text")
        return self._text


CASES: dict[str, tuple[Any, tuple[int | str, ...] | None]] = {
    "nothing": (None, None),
    "empty": ((), ()),
    "ints and texts": ((1, "b", -3), (1, "b", -3)),
    "a list": ([1, 2], (1, 2)),
    "one int": (7, (7,)),
    "one text": ("seven", ("seven",)),
    "bytes": (b"seven", ("seven",)),
    "bytes that are no text": ((b"\xff",), ("a bytes",)),
    "a tensor": (torch.tensor([[1, 2], [3, 4]]), (1, 2, 3, 4)),
    "a tensor of one": (torch.tensor(5), (5,)),
    "an array": (np.array([2**62, 1]), (2**62, 1)),
    "an array of texts": (np.array(["a", "bc"]), ("a", "bc")),
    "an array of objects": (np.array([1, "a", Named("n")], dtype=object), (1, "a", "n")),
    "numpy's ints": ((np.int32(4), np.uint8(5)), (4, 5)),
    "tensors": ((torch.tensor(4), torch.tensor([5])), (4, 5)),
    "objects": ((Named("x"), Named(None)), ("x", "a Named")),
    "truths": ((True, False), (True, False)),
    "numbers that are no ints": ((1.5,), ("1.5",)),
    "nothing among them": ((None, 1), ("None", 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_are_plain(case: str) -> None:
    """Ints and texts stay, what counts as one becomes one, everything else is its text."""
    given, expected = CASES[case]
    got = plain(given)
    assert got == expected
    assert got is None or all(isinstance(one, (int, str)) for one in got)
