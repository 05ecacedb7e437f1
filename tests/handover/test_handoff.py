"""Values reach the background in order, whatever way they travel."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gradtrace.handover import handoff
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.ring import Ring

CPU = torch.device("cpu")


def test_items_arrive_in_order_with_their_values() -> None:
    """CPU values are passed on as they are, as float64, in the order they were put."""
    queue: Handoff[str] = Handoff()
    assert queue.put("a", [torch.tensor(1.5), torch.tensor([1, 2])])
    assert queue.put("b", [])
    taken = queue.take()
    assert [item for item, _ in taken] == ["a", "b"]
    first, second = taken[0][1]
    assert first.dtype == np.float64 and float(first) == 1.5
    assert second.tolist() == [1.0, 2.0]


def test_a_full_queue_drops_and_counts() -> None:
    """Beyond its capacity the newest items go, and are counted; then it takes items again."""
    queue: Handoff[int] = Handoff(capacity=2)
    assert [queue.put(k, []) for k in range(4)] == [True, True, False, False]
    assert queue.dropped == 2
    assert [item for item, _ in queue.take()] == [0, 1]
    assert queue.put(4, [])


def test_values_of_meta_are_nan() -> None:
    """What nobody can read arrives as NaN of the right shape."""
    queue: Handoff[int] = Handoff()
    queue.put(0, [torch.ones(2, 3, device="meta")])
    [(_, [values])] = queue.take()
    assert values.shape == (2, 3) and np.isnan(values).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_ring_is_a_queue_of_bounded_size(seed: int) -> None:
    """Over many random puts and takes a ring loses nothing it accepted and mixes nothing up."""
    chance = random.Random(seed)
    ring = Ring(CPU, capacity=64, slots=5)
    waiting: list[tuple[tuple[int, int, int], list[torch.Tensor]]] = []
    refused = 0
    for _ in range(2000):
        if waiting and chance.random() < 0.5:
            ticket, tensors = waiting.pop(0)
            values = ring.take(ticket, [t.shape for t in tensors])
            assert values is not None
            for value, tensor in zip(values, tensors, strict=True):
                assert np.array_equal(value, tensor.double().numpy())
        else:
            tensors = [torch.rand(chance.randrange(1, 12)) for _ in range(chance.randrange(1, 4))]
            accepted = ring.put(tensors)
            if accepted is None:
                refused += 1
                assert waiting, "an empty ring takes what fits into it"
            else:
                waiting.append((accepted, tensors))
    assert refused > 0


def test_what_is_larger_than_a_ring_is_refused() -> None:
    """A step that can never fit is refused at once, and the ring goes on working."""
    ring = Ring(CPU, capacity=8, slots=4)
    assert ring.put([torch.ones(9)]) is None
    assert ring.put([torch.ones(8)]) is not None


def test_a_ring_is_made_for_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose steps are larger than a usual ring gets one that holds four of them."""
    made: list[int] = []

    class Made(Ring):
        def __init__(self, device: torch.device, *, capacity: int) -> None:
            made.append(capacity)
            super().__init__(CPU, capacity=capacity)

        def put(self, tensors: Sequence[torch.Tensor]) -> tuple[int, int, int] | None:
            return super().put([torch.zeros(t.shape) for t in tensors])

    monkeypatch.setattr(handoff, "CAPACITY", 8)
    monkeypatch.setattr(handoff, "Ring", Made)
    queue: Handoff[int] = Handoff()
    far: Any = SimpleNamespace(
        device=torch.device("cuda", 0), shape=torch.Size([5]), numel=lambda: 5, nbytes=40
    )
    assert queue.put(0, [far] * 3) and queue.put(1, [far])
    assert made == [60]
    assert [[values.size for values in arrays] for _, arrays in queue.take()] == [[5] * 3, [5]]


def test_a_value_under_way_holds_back_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item waits for its own values, and later items wait for it, so that order holds."""
    queue: Handoff[str] = Handoff()
    ring = Ring(CPU)
    ticket = ring.put([torch.tensor([3.0])])
    assert ticket is not None
    mark = int(ring._marks_read[0])
    ring._marks_read[0] = -1  # as long as the copy is under way
    parcel = handoff._Parcel[str](
        "slow", [None], [handoff._Ticket(ring, ticket, [0], [torch.Size([1])])]
    )
    queue._queue.append(parcel)
    queue.put("fast", [torch.tensor(1.0)])
    assert queue.take() == []
    ring._marks_read[0] = mark
    taken = queue.take()
    assert [item for item, _ in taken] == ["slow", "fast"]
    assert taken[0][1][0].tolist() == [3.0]


def test_capacity_is_checked() -> None:
    """A queue for no step is refused."""
    with pytest.raises(ValueError, match="capacity is 0; expected at least 1"):
        Handoff(capacity=0)
