"""The user's own sample ids, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Trace, gradtrace
from gradtrace.collect.sample_ids import SampleIds
from gradtrace.handover.ids import plain

BATCH = [torch.arange(3), torch.zeros(3)]


class Word:
    def __str__(self) -> str:
        return "word"


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no")


def lines() -> Iterator[str]:
    yield from ("a", "b")


GOOD: dict[str, tuple[Any, tuple[int | str, ...] | None]] = {
    "a list": (["a", 2], ("a", 2)),
    "a tuple": ((1, 2), (1, 2)),
    "a tensor": (torch.tensor([[4, 5]]), (4, 5)),
    "0-dim tensors": ([torch.tensor(3), torch.tensor(4)], (3, 4)),
    "an array": (np.array([7, 8]), (7, 8)),
    "an array of texts": (np.array(["x", "y"]), ("x", "y")),
    "numpy's ints": ([np.int64(5)], (5,)),
    "a generator": (lines(), ("a", "b")),
    "one text": ("only", ("only",)),
    "one int": (9, (9,)),
    "bytes": (b"abc", ("abc",)),
    "objects": ([Word(), Word()], ("word", "word")),
    "objects without text": ([Broken()], ("a Broken",)),
    "nothing": (None, None),
    "an empty list": ([], ()),
}

BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "raises": (lambda batch: batch["id"], "raised TypeError: list indices"),
    "floats": (lambda batch: batch[1], r"returned a tensor of torch.float32; expected the ids"),
    "another device": (lambda batch: batch[0].to("meta"), "returned a tensor on meta"),
    "rows": (lambda batch: [torch.arange(2)] * 3, "returned tensors of 2 values each"),
    "float tensors": (lambda batch: list(batch[1]), "returned a tensor of torch.float32"),
    "an array of floats": (lambda batch: np.zeros(3), "returned an array of float64"),
    "a list of floats": (lambda batch: [0.5], "returned a sequence of float"),
    "a mask": (lambda batch: batch[1] > 0, "returned a tensor of torch.bool"),
    "a list of truths": (lambda batch: [True, False], "returned a sequence of bool"),
    "a mapping": (lambda batch: {"a": 1}, "returned a dict"),
    "an object": (lambda batch: object(), "returned a object"),
}


def noted(function: Callable[[Any], Any]) -> tuple[Any, list[str]]:
    notes: list[str] = []
    found = SampleIds(function, lambda source, text: notes.append(f"{source}: {text}"))
    got = [found.of(BATCH) for _ in range(3)]
    return plain(got[0]), notes


@pytest.mark.parametrize("case", GOOD)
def test_ids_become_ints_and_texts(case: str) -> None:
    """What names samples arrives as plain ints and strings, in order."""
    given, expected = GOOD[case]
    assert noted(lambda batch: given) == (expected, [])


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_id_is_noted_once(case: str) -> None:
    """Anything else leaves the batch without ids, and one note says what came and what should."""
    function, message = BAD[case]
    ids, notes = noted(function)
    assert ids is None
    assert len(notes) == 1 and notes[0].startswith("sample_ids: sample_ids ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(notes[0])


def test_later_changes_are_not_seen() -> None:
    """A list, array or tensor that the loop reuses for the next batch keeps its first values."""
    for reused in ([1, 2], np.array([1, 2]), torch.tensor([1, 2])):
        kept = SampleIds(lambda batch, ids=reused: ids, lambda *_: None).of(BATCH)  # type: ignore[misc]
        reused[0] = 100
        assert plain(kept) == (1, 2)


def trained(function: Callable[[Any], Any]) -> Trace:
    data = TensorDataset(torch.randn(12, 4), torch.rand(12))
    loader = DataLoader(data, batch_size=4)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, loader=loader, sample_ids=function, directory=None) as trace:
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x)[:, 0], y).backward()
            optimizer.step()
    return trace


@pytest.mark.parametrize("case", BAD)
def test_no_step_and_no_batch_is_lost(case: str) -> None:
    """With a wrong function every step is recorded, with its batch, and one note tells."""
    trace = trained(BAD[case][0])
    assert [step.batches[0].batch_index for step in trace.steps] == [0, 1, 2]
    assert [step.batches[0].sample_ids for step in trace.steps] == [None] * 3
    assert [note.source for note in trace.notes] == ["sample_ids"]
