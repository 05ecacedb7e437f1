"""Batches are numbered as they are delivered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from gradtrace.collect.batches import Batches
from gradtrace.handover.step import Batch


def new() -> Batches:
    return Batches(None, lambda source, text: pytest.fail(text))


def numbers(batch: Batch) -> tuple[int, int, int]:
    return batch.epoch, batch.batch_index, batch.ordinal


def generated() -> Iterator[int]:
    yield from range(3)


def test_epochs_are_counted_for_each_loader() -> None:
    """Iterations over one loader do not count for another."""
    batches = new()
    first, second = DataLoader([1, 2]), DataLoader([3, 4])  # type: ignore[arg-type, var-annotated]
    assert [batches.epoch(one) for one in (first, second, first, first, second)] == [0, 0, 1, 2, 1]


@pytest.mark.parametrize("make", [generated, lambda: DataLoader([1, 2])])  # type: ignore[arg-type]
def test_a_loader_that_is_gone_is_not_taken_for_a_new_one(make: Any) -> None:
    """Memory is used again, and so are the numbers that tell objects apart."""
    batches = new()
    kept = make()
    assert batches.epoch(kept) == 0
    for _ in range(20):
        assert batches.epoch(make()) == 0
    assert batches.epoch(kept) == 1
    assert len(batches._epochs) == 1


def test_what_cannot_be_watched_is_known_by_its_place() -> None:
    """A list has no weak references: as long as it lives it is counted."""
    batches, one = new(), [1, 2]
    assert [batches.epoch(one) for _ in range(3)] == [0, 1, 2]


def test_batches_are_numbered_in_the_order_of_delivery() -> None:
    """Whatever loader they are from."""
    batches = new()
    found = [
        batches.delivered(epoch, index, None, None) for epoch, index in ((0, 0), (0, 0), (1, 5))
    ]
    assert [numbers(batch) for batch in found] == [(0, 0, 0), (0, 0, 1), (1, 5, 2)]
    assert batches.count == 3


@pytest.mark.parametrize(
    ("indices", "ids"),
    [
        (None, None),
        ([3, 1], (3, 1)),
        ((3, 1), (3, 1)),
        ([None, None], None),
        ([], ()),
        (7, (7,)),
        ("key", ("key",)),
    ],
)
def test_dataset_indices_are_the_ids(indices: Any, ids: Any) -> None:
    """Those that the sampler drew; an iterable dataset, which draws none, has none."""
    assert new().delivered(0, 0, indices, torch.ones(2)).sample_ids == ids


def test_drawn_indices_are_kept_from_later_changes() -> None:
    """A sampler may use its list again."""
    drawn = [1, 2]
    batch = new().delivered(0, 0, drawn, None)
    drawn[0] = 9
    assert batch.sample_ids == (1, 2)


def test_the_users_own_ids_come_first() -> None:
    """Their function gets the batch, and dataset indices are not asked."""
    batches = Batches(lambda batch: [f"doc-{x}" for x in batch], lambda source, text: None)
    assert batches.delivered(0, 0, [3, 1], ["a", "b"]).sample_ids == ("doc-a", "doc-b")
