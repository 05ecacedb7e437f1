"""The demo's corpus."""

from __future__ import annotations

import pytest
import torch

from gradtrace.demo.documents import IGNORED, KINDS, LENGTH, Documents, collate
from gradtrace.demo.text import help_text


def test_documents() -> None:
    """Most documents are real text; the corrupted ones are long, and told apart by kind."""
    data = Documents(count=300, corrupted=5)
    assert len(data) == 300 and len(data.corrupted) == 5
    assert set(data.corrupted.values()) == set(KINDS)
    text = help_text()
    for index in range(300):
        if index in data.corrupted:
            assert len(data[index]) == LENGTH
            assert "<" in data.decode(data[index])
        else:
            assert data.decode(data[index]) in text
            assert 32 <= len(data[index]) <= 64
    again = Documents(count=300, corrupted=5)
    assert again.corrupted == data.corrupted
    assert all(torch.equal(again[i], data[i]) for i in range(300))
    with pytest.raises(ValueError, match="at most"):
        Documents(count=10**6)


def test_collate_pads_and_ignores() -> None:
    """Inputs are padded to the longest; the padding of targets is marked."""
    inputs, targets = collate([torch.tensor([1, 2, 3]), torch.tensor([4, 5])])
    assert inputs.tolist() == [[1, 2], [4, 0]]
    assert targets.tolist() == [[2, 3], [5, IGNORED]]
