"""The moments of one tensor, on its device: chunks of 2^20 elements, few calls a chunk.

CPU, per chunk: `aminmax`, `dot`, `sum`, and the non-zero count as `dot(sign, sign)`, all float32
(half precision is cast chunk by chunk, which keeps `dot` from overflowing). Chunks are added up
in float64 later, so a norm over 10^8 values is right to about 1e-7 where torch's own float32
norm is off by 1e-3. A chunk float32 is not good enough for (non-finite, squares that overflow or
vanish, |mean| / std above 20) is read once more in float64; only a CPU can look whether it must.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from gradtrace.measure.flat import flatten, is_partial, local, stored
from gradtrace.measure.reading import Reading
from gradtrace.measure.rows import ABS, BAD, MAX, MIN, NONZERO, NORM, ROW, SUM, N, Positions
from gradtrace.records import Array

CHUNK = 1 << 20
CELLS = 6  # min, max, square sum, sum, non-zero count, non-finite count

# sum^2/n above this share of the square sum means |mean| / std > 20: float32 then loses the std.
_FLAT_SHARE = 0.9975
# Squares of values below this are denormal or zero in float32.
_TINY = 1e-15


class Scratch:
    """One chunk of working memory per device and dtype, made on first use."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.device, torch.dtype, str], Tensor] = {}

    def get(self, like: Tensor, dtype: torch.dtype, use: str, n: int) -> Tensor:
        """A buffer of `n` elements; two `use`s never share one."""
        key = (like.device, dtype, use)
        buffer = self._buffers.get(key)
        if buffer is None:
            # A buffer made in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                buffer = self._buffers[key] = torch.empty(CHUNK, dtype=dtype, device=like.device)
        return buffer if n == CHUNK else buffer[:n]

    def unknown(self, like: Tensor) -> Tensor:
        """A 0-dim NaN that is never written."""
        key = (like.device, like.dtype, "unknown")
        unknown = self._buffers.get(key)
        if unknown is None:
            with torch.inference_mode(False):
                unknown = torch.full((), float("nan"), dtype=like.dtype, device=like.device)
            self._buffers[key] = unknown
        return unknown

    def zero(self, like: Tensor) -> Tensor:
        """A 0-dim zero that is never written."""
        key = (like.device, like.dtype, "zero")
        zero = self._buffers.get(key)
        if zero is None:
            with torch.inference_mode(False):
                zero = self._buffers[key] = torch.zeros((), dtype=like.dtype, device=like.device)
        return zero


class Accumulator:
    """Collects the chunk sums of tensors that arrive one at a time (activations, output gradients).

    Keeps 0-dim results, never the tensors. Call under `torch.no_grad()`.
    """

    def __init__(self, scratch: Scratch, most: int = sys.maxsize) -> None:
        self._scratch = scratch
        self._most = most
        self._positions: list[int] = []
        self._sizes: list[int] = []
        self._cells: dict[torch.device, list[Tensor]] = {}
        self._rows: dict[torch.device, list[int]] = {}
        self._last: list[tuple[int, tuple[Tensor, ...]]] = []

    def __bool__(self) -> bool:
        return bool(self._positions)

    @property
    def full(self) -> bool:
        """Whether there are as many rows as there may be: `most`, or a tensor's more."""
        return len(self._positions) >= self._most

    def add(self, position: int, tensor: Tensor, *, norm_only: bool = False) -> bool:
        """Measures one tensor; False when its values cannot be read without waiting, or when full.

        `norm_only` leaves every cell but the square sum NaN. Of a DTensor it is what this process
        holds; where that is a summand, every cell is NaN.
        """
        cells = _norm_cells if norm_only else chunk_cells
        self._last = []
        partial, tensor = is_partial(tensor), local(tensor)
        values = stored(tensor)
        if values is None:
            return False
        if self.full:
            return False
        if partial:
            unknown = self._scratch.unknown(values.new_empty(0, dtype=torch.float32))
            self._add_row(position, tensor.numel(), (unknown,) * CELLS)
            return True
        flat = flatten(values)
        # A sparse tensor's missing entries are zeros: they count in n and nowhere else.
        whole = tensor.numel() * (2 if tensor.is_complex() else 1)
        implicit = 0 if values is tensor else max(whole - flat.numel(), 0)
        if implicit or flat.numel() == 0:
            self._add_row(position, implicit, flat.new_zeros(CELLS, dtype=torch.float32).unbind())
        for chunk in flat.split(CHUNK) if flat.numel() > CHUNK else (flat,):
            if chunk.numel():
                self._add_row(position, chunk.numel(), cells(chunk, self._scratch))
        return True

    def again(self, position: int) -> None:
        """Gives `position` what the last `add` measured: the same tensor under another name."""
        last = self._last
        self._last = []
        for size, cells in last:
            self._add_row(position, size, cells)

    def _add_row(self, position: int, size: int, cells: tuple[Tensor, ...]) -> None:
        device = cells[0].device
        self._rows.setdefault(device, []).append(len(self._positions))
        self._cells.setdefault(device, []).extend(cells)
        self._positions.append(position)
        self._sizes.append(size)
        self._last.append((size, cells))

    def reading(self) -> Reading:
        """Everything added, as one tensor per device."""
        positions = np.asarray(self._positions, dtype=np.intp)
        sizes = np.asarray(self._sizes, dtype=np.float64)
        order = [np.asarray(rows, dtype=np.intp) for rows in self._rows.values()]

        def decode(arrays: Sequence[Array]) -> tuple[Positions, Array]:
            rows = np.empty((len(positions), len(ROW)))
            rows[:, N] = sizes
            for at, array in zip(order, arrays, strict=True):
                rows[at, 1:] = cells_to_rows(array.reshape(-1, CELLS))
            return positions, rows

        return Reading([torch.stack(cells) for cells in self._cells.values()], decode)


def cells_to_rows(cells: Array) -> Array:
    """Chunk cells [chunks, CELLS] to the columns of ROW behind `n`."""
    rows = np.empty((len(cells), len(ROW) - 1))
    low, high = cells[:, 0], cells[:, 1]
    with np.errstate(invalid="ignore"):
        rows[:, SUM - 1] = cells[:, 3]
        rows[:, NORM - 1] = np.sqrt(cells[:, 2])
        rows[:, MIN - 1] = low
        rows[:, MAX - 1] = high
        rows[:, ABS - 1] = np.maximum(np.abs(low), np.abs(high))
        rows[:, NONZERO - 1] = cells[:, 4]
        rows[:, BAD - 1] = cells[:, 5]
    return rows


def chunk_cells(x: Tensor, scratch: Scratch) -> tuple[Tensor, ...]:
    """The CELLS of one flat chunk as 0-dim tensors; about 0.4 ns a value on two CPU threads."""
    return _host_cells(x, scratch) if x.device.type == "cpu" else _accelerator_cells(x)


def _host_cells(x: Tensor, scratch: Scratch) -> tuple[Tensor, ...]:
    if x.dtype not in (torch.float32, torch.float64):
        x = scratch.get(x, torch.float32, "cast", x.numel()).copy_(x)
    low, high = torch.aminmax(x)
    square = torch.dot(x, x)
    total = torch.sum(x)
    if _needs_double(x.numel(), low, high, square, total):
        return _double_cells(x)
    sign = torch.sign(x, out=scratch.get(x, x.dtype, "sign", x.numel()))
    return low, high, square, total, torch.dot(sign, sign), scratch.zero(x)


def _norm_cells(x: Tensor, scratch: Scratch) -> tuple[Tensor, ...]:
    if x.device.type != "cpu":
        norm = torch.linalg.vector_norm(x.float() if x.dtype.itemsize < 4 else x)
        square = norm * norm
    else:
        if x.dtype not in (torch.float32, torch.float64):
            x = scratch.get(x, torch.float32, "cast", x.numel()).copy_(x)
        square = torch.dot(x, x)
        if not x.numel() * _TINY**2 <= float(square) < 3e38:
            y = x.double()
            square = torch.dot(y, y)
    unknown = scratch.unknown(square)
    return unknown, unknown, square, unknown, unknown, unknown


def _needs_double(n: int, low: Tensor, high: Tensor, square: Tensor, total: Tensor) -> bool:
    """Whether float32 sums are too coarse here. Looks on a CPU only: no device to wait for."""
    if square.device.type != "cpu":
        return False
    if low.dtype is torch.float64 and bool(torch.isfinite(square)):
        return False
    s, t = float(square), float(total)
    if not s < 3e38 or t * t > _FLAT_SHARE * n * s:
        return True
    # Only a tiny sum can hide squares that vanished.
    return s < n * _TINY**2 and 0 < max(-float(low), float(high)) < _TINY


def _double_cells(x: Tensor) -> tuple[Tensor, ...]:
    y = x.double()
    low, high = torch.aminmax(x)
    bad = x.numel() - torch.isfinite(x).sum(dtype=torch.float64)
    return (
        low.double(),
        high.double(),
        torch.dot(y, y),
        y.sum(),
        torch.count_nonzero(x).double(),
        bad,
    )


def _accelerator_cells(x: Tensor) -> tuple[Tensor, ...]:
    """The same without a look: every cell is computed, nothing is read."""
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    low, high = torch.aminmax(x)
    norm = torch.linalg.vector_norm(x)
    kind = x.dtype
    bad = x.numel() - torch.isfinite(x).sum(dtype=kind)
    return low, high, norm * norm, torch.sum(x), torch.linalg.vector_norm(x, 0), bad


def is_measurable(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor of real or complex floating numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
