"""Pinned memory through which an accelerator's results travel, without anybody waiting.

Results are packed into one vector and copied, without blocking, into pinned memory; a sequence
number follows on the same stream, so a number that has arrived means the values before it have
too. The reader polls that number in memory and never calls the device: an event query from another
thread would break a CUDA graph capture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradtrace.records import Array

CAPACITY = 1 << 20


class Ring:
    """Pinned memory that one device's results travel through; one writer, one reader.

    `capacity` is in float64 values, `slots` bounds the steps under way.
    """

    def __init__(self, device: torch.device, *, capacity: int = CAPACITY, slots: int = 256) -> None:
        pin = device.type == "cuda" and torch.cuda.is_available()
        self._device = device
        self._capacity, self._slots = capacity, slots
        self._values = torch.empty(capacity, dtype=torch.float64, pin_memory=pin)
        self._marks = torch.full((slots,), -1, dtype=torch.int64, pin_memory=pin)
        self._values_read: Array = self._values.numpy()
        self._marks_read = self._marks.numpy()
        # Written by the training thread alone:
        self._sequence = 0
        self._head = 0
        # Written by the reader alone; ever-growing counts of what it has taken.
        self._taken = 0
        self._tail = 0

    def start_of(self, size: int) -> int | None:
        """Where so many values would begin; None when there is no room. Training thread."""
        start = self._head
        if start % self._capacity + size > self._capacity:
            start += self._capacity - start % self._capacity  # never wrap inside one step
        full = start + size - self._tail > self._capacity
        return None if full or self._sequence - self._taken >= self._slots else start

    def put(self, tensors: Sequence[Tensor]) -> tuple[int, int, int] | None:
        """Starts the copy of all values; returns a ticket, or None when the ring is full.

        Training thread; a handful of launches. The source lives on its stream until it is copied.
        """
        size = sum(t.numel() for t in tensors)
        start = self.start_of(size)
        if start is None:
            return None
        with torch.no_grad():
            packed = torch.cat([t.detach().reshape(-1).to(torch.float64) for t in tensors])
            at = start % self._capacity
            self._values[at : at + size].copy_(packed, non_blocking=True)
            mark = torch.full((), self._sequence, dtype=torch.int64, device=self._device)
            self._marks[self._sequence % self._slots].copy_(mark, non_blocking=True)
        ticket = (self._sequence, start, size)
        self._sequence += 1
        self._head = start + size
        return ticket

    def take(
        self, ticket: tuple[int, int, int], shapes: Sequence[torch.Size]
    ) -> list[Array] | None:
        """The values of a ticket, or None while they are under way. Tickets are taken in order."""
        sequence, start, size = ticket
        if self._marks_read[sequence % self._slots] != sequence:
            return None
        at = start % self._capacity
        flat = self._values_read[at : at + size].copy()
        self._taken = sequence + 1
        self._tail = start + size
        bounds = np.cumsum([shape.numel() for shape in shapes])[:-1]
        return [
            part.reshape(tuple(shape))
            for part, shape in zip(np.split(flat, bounds), shapes, strict=True)
        ]
