"""Values reach the background in order, whatever way they travel."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gradtrace.handover import handoff
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.ring import Ring
from gradtrace.measure.reading import Pending
from gradtrace.records import Array

CPU = torch.device("cpu")


class Item:
    """Something with values."""

    def __init__(self, name: str | int, *tensors: Any) -> None:
        self.name = name
        self.pending = [Pending(tensor) for tensor in tensors]

    def cells(self) -> list[Pending]:
        return self.pending

    @property
    def arrays(self) -> list[Array]:
        return [cell.array for cell in self.pending]


def test_items_arrive_in_order_with_their_values() -> None:
    """CPU values are passed on as they are, as float64, in the order they were put."""
    queue: Handoff[Item] = Handoff()
    assert queue.put(Item("a", torch.tensor(1.5), torch.tensor([1, 2])))
    assert queue.put(Item("b"))
    taken = queue.take()
    assert [item.name for item in taken] == ["a", "b"]
    first, second = taken[0].arrays
    assert first.dtype == np.float64 and float(first) == 1.5
    assert second.tolist() == [1.0, 2.0]


def test_tensors_are_let_go_when_their_values_are_known() -> None:
    """An item that has arrived keeps no tensor alive; one under way cannot be read."""
    queue: Handoff[Item] = Handoff()
    item = Item("a", torch.ones(3))
    with pytest.raises(RuntimeError, match="still under way"):
        item.arrays  # noqa: B018 the reading is what is tried
    queue.put(item)
    queue.take()
    assert [cell.tensor for cell in item.pending] == [None]


def test_a_full_queue_drops_and_counts() -> None:
    """Beyond its capacity the newest items go, and are counted; then it takes items again."""
    queue: Handoff[Item] = Handoff(capacity=2)
    assert [queue.put(Item(k)) for k in range(4)] == [True, True, False, False]
    assert queue.dropped == 2
    assert [item.name for item in queue.take()] == [0, 1]
    assert queue.put(Item(4))


def test_values_of_meta_are_nan() -> None:
    """What nobody can read arrives as NaN of the right shape."""
    queue: Handoff[Item] = Handoff()
    queue.put(Item(0, torch.ones(2, 3, device="meta")))
    [item] = queue.take()
    assert item.arrays[0].shape == (2, 3) and np.isnan(item.arrays[0]).all()


def test_what_cannot_be_read_costs_its_own_item() -> None:
    """A tensor without readable values drops its item, which is told; the next one arrives."""
    queue: Handoff[Item] = Handoff()
    queue.put(Item("odd", torch.ones(2).to(torch.float8_e4m3fn)))
    queue.put(Item("good", torch.ones(1)))
    assert [item.name for item in queue.take()] == ["good"]
    assert queue.dropped == 1 and len(queue.failures) == 1


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
    queue: Handoff[Item] = Handoff()
    far: Any = SimpleNamespace(
        device=torch.device("cuda", 0),
        is_cpu=False,
        is_meta=False,
        shape=torch.Size([5]),
        numel=lambda: 5,
        nbytes=40,
    )
    assert queue.put(Item(0, far, far, far)) and queue.put(Item(1, far))
    assert made == [60]
    assert [[values.size for values in item.arrays] for item in queue.take()] == [[5] * 3, [5]]


def test_a_value_under_way_holds_back_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item waits for its own values, and later items wait for it, so that order holds."""
    ring = Ring(CPU)
    monkeypatch.setattr(handoff, "_is_far", lambda tensor: tensor.numel() == 7)
    queue: Handoff[Item] = Handoff()
    queue._rings[CPU] = ring
    assert queue.put(Item("slow", torch.full((7,), 3.0), torch.tensor(2.0)))
    mark = int(ring._marks_read[0])
    ring._marks_read[0] = -1  # as long as the copy is under way
    queue.put(Item("fast", torch.tensor(1.0)))
    assert queue.take() == []
    ring._marks_read[0] = mark
    taken = queue.take()
    assert [item.name for item in taken] == ["slow", "fast"]
    assert taken[0].arrays[0].tolist() == [3.0] * 7 and taken[0].arrays[1] == 2.0


def test_capacity_is_checked() -> None:
    """A queue for no step is refused."""
    with pytest.raises(ValueError, match="capacity is 0; expected at least 1"):
        Handoff[Item](capacity=0)
