"""From the training thread to the background thread, without waiting for a device.

CPU results are finished when they exist: they are passed on as they are. Results on an
accelerator are packed into one vector and copied, without blocking, into pinned memory; a sequence
number follows on the same stream, so a number that has arrived means the values before it have
too. The reader polls that number in memory and never calls the device: an event query from another
thread would break a CUDA graph capture. Values that no thread can read (the meta device) arrive as
NaN. A full lane drops the step and counts it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from gradtrace.handover.ring import CAPACITY, Ring
from gradtrace.records import Array

T = TypeVar("T")


@dataclass(slots=True)
class _Parcel(Generic[T]):
    item: T
    tensors: list[Tensor | None]
    """None where a ring carries the value."""
    tickets: list[_Ticket]
    nbytes: int = 0
    dropped: bool = False


@dataclass(slots=True)
class _Ticket:
    ring: Ring
    number: tuple[int, int, int]
    places: list[int]
    shapes: list[torch.Size]
    values: list[Array] | None = None


class Handoff(Generic[T]):
    """A queue of items and their tensors' values; `put` in the training thread, `take` elsewhere.

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

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether rings have room for these values now. Training thread."""
        sizes: dict[torch.device, int] = {}
        for tensor in tensors:
            if tensor.device.type not in ("cpu", "meta"):
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

    def put(self, item: T, tensors: Sequence[Tensor]) -> bool:
        """Hands over an item; False when it was dropped. Never waits."""
        if len(self._queue) >= self._capacity:
            self.dropped += 1
            return False
        parcel = _Parcel(item, list(tensors), [])
        elsewhere: dict[torch.device, list[int]] = {}
        for i, tensor in enumerate(tensors):
            if tensor.device.type not in ("cpu", "meta"):
                elsewhere.setdefault(tensor.device, []).append(i)
        for device, places in elsewhere.items():
            ring = self._ring(device, sum([tensors[i].numel() for i in places]))
            number = ring.put([tensors[i] for i in places])
            if number is None:
                # What other devices' rings took must still be taken out of them.
                parcel.dropped = True
                self.dropped += 1
                break
            parcel.tickets.append(_Ticket(ring, number, places, [tensors[i].shape for i in places]))
            for i in places:
                parcel.tensors[i] = None
        parcel.nbytes = sum([tensor.nbytes for tensor in tensors])
        self._bytes_put += parcel.nbytes
        self._queue.append(parcel)
        return not parcel.dropped

    def take(self, limit: int = 256) -> list[tuple[T, list[Array]]]:
        """The items whose values have arrived, in order; stops at the first that has not."""
        taken: list[tuple[T, list[Array]]] = []
        while self._queue and len(taken) < limit:
            parcel = self._queue[0]
            for ticket in parcel.tickets:
                if ticket.values is None:
                    ticket.values = ticket.ring.take(ticket.number, ticket.shapes)
                    if ticket.values is None:
                        return taken
            self._queue.popleft()
            self._bytes_taken += parcel.nbytes
            if parcel.dropped:
                continue
            carried = {
                i: value
                for ticket in parcel.tickets
                for i, value in zip(ticket.places, ticket.values or (), strict=True)
            }
            try:
                values = [
                    carried[i] if tensor is None else _values(tensor)
                    for i, tensor in enumerate(parcel.tensors)
                ]
            except Exception as error:  # a tensor of a kind that has no values to read
                self.dropped += 1
                self.failures.append(error)
                continue
            taken.append((parcel.item, values))
        return taken


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
