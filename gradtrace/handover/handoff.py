"""From the training thread to the background thread, without waiting for a device.

CPU results are finished when they exist: they are passed on as they are. Results on an
accelerator travel through a `Ring`. Values that no thread can read (the meta device) arrive as NaN.
A full lane drops the item and counts it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from gradtrace.handover.ring import CAPACITY, Ring
from gradtrace.measure.reading import Pending
from gradtrace.records import Array


class Carried(Protocol):
    """What can be handed over."""

    def cells(self) -> Iterable[Pending]:
        """The values that have to arrive, each once."""


T = TypeVar("T", bound=Carried)


@dataclass(slots=True)
class _Ticket:
    """Values that a ring carries; `cells` is empty once they have arrived."""

    ring: Ring
    number: tuple[int, int, int]
    shapes: list[torch.Size]
    cells: list[Pending]

    def collect(self) -> bool:
        """Whether the values are here; fills their cells."""
        if self.cells:
            values = self.ring.take(self.number, self.shapes)
            if values is None:
                return False
            for cell, value in zip(self.cells, values, strict=True):
                cell.arrived(value)
            self.cells = []
        return True


@dataclass(slots=True)
class _Parcel(Generic[T]):
    item: T
    here: list[Pending]
    """Cells whose tensors the background thread may read itself."""
    tickets: list[_Ticket]
    nbytes: int = 0
    dropped: bool = False


class Handoff(Generic[T]):
    """A queue of items; `put` in the training thread, `take` elsewhere, with their cells filled.

    At most `capacity` items wait; more are dropped and counted in `dropped`. `reserve` is how many
    values an accelerator's ring has room for at least. `failures` are errors met while reading
    values; the items were dropped.
    """

    def __init__(self, *, capacity: int = 1024, reserve: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; expected at least 1 step")
        self.dropped = 0
        self._capacity = capacity
        self._queue: deque[_Parcel[T]] = deque()
        self._rings: dict[torch.device, Ring] = {}
        self._reserve = reserve
        self.failures: deque[Exception] = deque()
        # Written by one thread each.
        self._bytes_put = 0
        self._bytes_taken = 0

    @property
    def waiting_bytes(self) -> int:
        """What the values of all waiting items take. Any thread."""
        return self._bytes_put - self._bytes_taken

    def fits(self, item: T) -> bool:
        """Whether rings have room for these values now. Training thread."""
        sizes: dict[torch.device, int] = {}
        for cell in item.cells():
            tensor = cell.tensor
            if tensor is not None and _is_far(tensor):
                sizes[tensor.device] = sizes.get(tensor.device, 0) + tensor.numel()
        return all(self._ring(device, n).start_of(n) is not None for device, n in sizes.items())

    def _ring(self, device: torch.device, size: int) -> Ring:
        """The ring of a device; made with room for four times `size`."""
        ring = self._rings.get(device)
        if ring is None:
            ring = Ring(device, capacity=max(CAPACITY, 4 * size, self._reserve))
            self._rings[device] = ring
        return ring

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, item: T) -> bool:
        """Hands over an item; False when it was dropped. Never waits."""
        if len(self._queue) >= self._capacity:
            self.dropped += 1
            return False
        parcel = _Parcel(item, [], [])
        far: dict[torch.device, tuple[list[Pending], list[Tensor]]] = {}
        for cell in item.cells():
            tensor = cell.tensor
            if tensor is None:
                continue
            parcel.nbytes += tensor.nbytes
            if _is_far(tensor):
                cells, tensors = far.setdefault(tensor.device, ([], []))
                cells.append(cell)
                tensors.append(tensor)
            else:
                parcel.here.append(cell)
        for device, (cells, tensors) in far.items():
            if not self._send(parcel, device, cells, tensors):
                break
        self._bytes_put += parcel.nbytes
        self._queue.append(parcel)
        return not parcel.dropped

    def _send(
        self,
        parcel: _Parcel[T],
        device: torch.device,
        cells: list[Pending],
        tensors: Sequence[Tensor],
    ) -> bool:
        """Starts the copies from one device; False where they have no room."""
        ring = self._ring(device, sum([tensor.numel() for tensor in tensors]))
        number = ring.put(tensors)
        if number is None:
            # What other devices' rings took must still be taken out of them.
            parcel.dropped = True
            self.dropped += 1
            return False
        parcel.tickets.append(_Ticket(ring, number, [t.shape for t in tensors], cells))
        for cell in cells:
            cell.tensor = None
        return True

    def take(self, limit: int = 256) -> list[T]:
        """The items whose values have arrived, in order; stops at the first that has not."""
        taken: list[T] = []
        while self._queue and len(taken) < limit:
            parcel = self._queue[0]
            if not all(ticket.collect() for ticket in parcel.tickets):
                return taken
            self._queue.popleft()
            self._bytes_taken += parcel.nbytes
            if parcel.dropped:
                continue
            try:
                for cell in parcel.here:
                    if cell.tensor is not None:
                        cell.arrived(_values(cell.tensor))
            except Exception as error:  # a tensor of a kind that has no values to read
                self.dropped += 1
                self.failures.append(error)
                continue
            taken.append(parcel.item)
        return taken


def _is_far(tensor: Tensor) -> bool:
    """Whether the tensor's values can only be read by waiting for its device."""
    return not (tensor.is_cpu or tensor.is_meta)


def _values(tensor: Tensor) -> Array:
    """The values of a CPU tensor as float64; NaN for one on the meta device. Background thread."""
    if tensor.device.type == "meta":
        return np.full(tuple(tensor.shape), np.nan)
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:  # numpy has none
        tensor = tensor.float()
    array: Array = tensor.numpy().astype(np.float64, copy=False)
    return array
