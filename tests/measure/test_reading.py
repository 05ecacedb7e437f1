"""Values that are not known yet, and what becomes of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gradtrace.handover.handoff import Handoff
from gradtrace.measure.reading import Pending, Reading, known, pending
from gradtrace.measure.rows import ABS, MAX, MIN, NONZERO, NORM, ROW, SUM, N, Positions
from gradtrace.records import Array


def test_what_has_not_arrived_cannot_be_read() -> None:
    """Asking too early is an error that says who brings values; it is never a wrong number."""
    cell = Pending(torch.ones(2))
    for ask in (lambda: cell.array, lambda: cell.number, lambda: known(cell)):
        with pytest.raises(RuntimeError, match="still under way: only the hand-over may bring it"):
            ask()
    reading = Reading([torch.ones(2)], decode)
    with pytest.raises(RuntimeError, match="still under way"):
        reading.rows()


def test_values_replace_the_tensor() -> None:
    """When they are known the tensor is let go, and nothing else holds it."""
    tensor = torch.tensor([1.0, 2.0])
    cell, gone = Pending(tensor), weakref.ref(tensor)
    del tensor
    assert gone() is not None
    cell.arrived(np.array([1.0, 2.0]))
    gc.collect()
    assert gone() is None and cell.tensor is None
    assert cell.array.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool],
)
def test_all_kinds_of_values_arrive_as_float64(dtype: torch.dtype) -> None:
    """In the tensor's shape, exactly; also of a tensor that requires gradients."""
    tensor = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]).to(dtype)
    if dtype.is_floating_point:
        tensor.requires_grad_()
    cell = arrived([Pending(tensor)])[0]
    assert cell.array.dtype == np.float64 and cell.array.shape == (2, 3)
    assert cell.array.tolist() == [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_number_is_the_value_of_one_element(shape: tuple[int, ...]) -> None:
    """However the tensor is shaped."""
    [cell] = arrived([Pending(torch.full(shape, 2.5))])
    assert cell.number == known(cell) == 2.5 and isinstance(cell.number, float)


def test_numbers_that_are_known_stay_as_they_are() -> None:
    """A float is its own value; a tensor becomes a cell."""
    assert pending(3) == known(3.0) == 3.0 and isinstance(pending(3), float)
    assert isinstance(pending(torch.tensor(3.0)), Pending)


class Item:
    def __init__(self, cells: Sequence[Pending]) -> None:
        self._cells = cells

    def cells(self) -> Sequence[Pending]:
        return self._cells


def arrived(cells: Sequence[Pending]) -> Sequence[Pending]:
    """The same cells, after the hand-over."""
    queue: Handoff[Item] = Handoff()
    assert queue.put(Item(cells)) and len(queue.take()) == 1
    return cells


def decode(arrays: Sequence[Array]) -> tuple[Positions, Array]:
    """Rows whose every column but `nonzero` is the layer's value."""
    rows = np.repeat(arrays[0][:, None], len(ROW), axis=1)
    rows[:, NONZERO] = 1.0
    return np.arange(len(rows)), rows


def test_a_reading_waits_for_all_its_cells() -> None:
    """Its tensors and its divisor are what has to arrive, each once."""
    reading = Reading([torch.ones(2), torch.zeros(3)], decode)
    assert list(reading.cells()) == reading.pending and len(reading.pending) == 2
    reading.divisor = Pending(torch.tensor(4.0))
    assert list(reading.cells()) == [*reading.pending, reading.divisor]


def test_the_loss_scale_divides_sizes_and_no_counts() -> None:
    """Rows come without the scale as often as they are asked for; `decoded` leaves it in."""
    reading = Reading([torch.tensor([8.0, 16.0])], decode)
    reading.divisor = Pending(torch.tensor(4.0))
    arrived(list(reading.cells()))
    for _ in range(3):
        positions, rows = reading.rows()
        assert positions.tolist() == [0, 1]
        for column in (SUM, NORM, MIN, MAX, ABS):
            assert rows[:, column].tolist() == [2.0, 4.0]
        assert rows[:, N].tolist() == [8.0, 16.0] and rows[:, NONZERO].tolist() == [1.0, 1.0]
        assert reading.decoded()[1][:, NORM].tolist() == [8.0, 16.0]
