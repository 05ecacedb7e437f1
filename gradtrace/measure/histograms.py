"""How many values of a tensor fall into each bin, without a look at any of them.

The upper bits of a float are its bin: sign, exponent and two bits of mantissa, a quarter of an
octave. One shift and one count serve every range of values; which octaves are kept is decided
afterwards, on the counts, by indexing on the device. Values of half precision become float32,
which holds them exactly. Small tensors are shifted together, for a call costs more than they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradtrace.measure.chunks import CHUNK, Scratch, is_measurable
from gradtrace.measure.flat import flatten, stored
from gradtrace.measure.reading import Reading
from gradtrace.measure.rows import Positions
from gradtrace.records import Array
from gradtrace.records.histograms import BINS, OCTAVES, PARTS, SIDE

MOST_COUNTS = 1 << 19
"""Counts of all bins (4 MB) that are held before they are cut down to the bins that are kept."""

PER_LAYER = BINS + 32
"""Values of a layer that travel at a step, statistics included."""

SMALL = 1 << 14
"""Values of a tensor that is shifted together with others."""


class _Layout(NamedTuple):
    """How a floating type lies in an integer of its size."""

    floating: torch.dtype
    integer: torch.dtype
    shift: int
    exponents: int
    bias: int


_SINGLE = _Layout(torch.float32, torch.int32, 23 - 2, 1 << 8, 127)
_DOUBLE = _Layout(torch.float64, torch.int64, 52 - 2, 1 << 11, 1023)


def read_histograms(
    positions: Sequence[int], tensors: Sequence[Tensor], scratch: Scratch
) -> list[Reading]:
    """Starts counting tensors of any devices and dtypes; under `torch.no_grad()`.

    Rows decode to a limit and the counts of BINS bins. Tensors whose values cannot be read without
    waiting are left out. Cost: some 10 us a tensor (float64: 50 us) and 0.5 ns a value on a CPU.
    """
    readings: list[Reading] = []
    groups: dict[tuple[torch.device, _Layout], _Group] = {}
    for position, tensor in zip(positions, tensors, strict=True):
        values = stored(tensor) if is_measurable(tensor) else None
        if values is None:
            continue
        flat = flatten(values.detach())
        key = flat.device, _DOUBLE if flat.dtype is torch.float64 else _SINGLE
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(*key, scratch)
        # A sparse tensor's missing entries are zeros.
        whole = tensor.numel() * (2 if tensor.is_complex() else 1)
        group.add(position, flat, max(whole - flat.numel(), 0))
        if group.full:
            readings.append(group.reading())
            del groups[key]
    return readings + [group.reading() for group in groups.values()]


class _Group:
    """Tensors of one device and layout."""

    def __init__(self, device: torch.device, layout: _Layout, scratch: Scratch) -> None:
        self._layout = layout
        self._scratch = scratch
        self._size = 2 * layout.exponents * PARTS
        self._device = device
        self._positions: list[int] = []
        self._implicit: list[int] = []
        self._counts: list[Tensor | None] = []
        self._small: list[tuple[int, Tensor]] = []
        self._waiting = 0

    @property
    def full(self) -> bool:
        """Whether it has counted as many layers as it should."""
        return len(self._positions) * self._size >= MOST_COUNTS

    def add(self, position: int, flat: Tensor, implicit: int) -> None:
        """Counts a tensor's values, or lets a small one wait for others."""
        at = len(self._positions)
        self._positions.append(position)
        self._implicit.append(implicit)
        self._counts.append(None)
        if flat.numel() > SMALL:
            for chunk in flat.split(CHUNK):
                self._count([(at, chunk)], chunk)
        elif flat.numel():
            if flat.dtype.itemsize == 1:
                flat = flat.float()  # eight bits cannot be joined with others
            self._small.append((at, flat))
            self._waiting += flat.numel()
            if self._waiting > CHUNK - SMALL:
                self._count_small()

    def _count_small(self) -> None:
        if self._small:
            self._count(self._small, torch.cat([flat for _, flat in self._small]))
        self._small = []
        self._waiting = 0

    def _count(self, parts: Sequence[tuple[int, Tensor]], flat: Tensor) -> None:
        size = flat.numel()
        integer, shift = self._layout.integer, self._layout.shift
        if flat.device.type == "cpu":
            if flat.dtype is not self._layout.floating:
                flat = self._scratch.get(flat, self._layout.floating, "cast", size).copy_(flat)
            bits = flat.view(integer)
            bins = self._scratch.get(bits, integer, "bins", size)
            torch.bitwise_right_shift(bits, shift, out=bins)
            count = _count_on_host
        else:
            # No shared memory: hooks of other streams may be at work, too.
            bins = torch.bitwise_right_shift(flat.to(self._layout.floating).view(integer), shift)
            count = _count_on_device
        bins.bitwise_and_(self._size - 1)  # the shift spread the sign
        for (at, _), some in zip(parts, bins.split([p.numel() for _, p in parts]), strict=True):
            counts, before = count(some, self._size), self._counts[at]
            self._counts[at] = counts if before is None else before.add_(counts)

    def reading(self) -> Reading:
        """Everything added; the group is used up."""
        self._count_small()
        positions: Positions = np.asarray(self._positions, dtype=np.intp)
        implicit = np.asarray(self._implicit, dtype=np.float64)
        bias = self._layout.bias

        def decode(arrays: Sequence[Array]) -> tuple[Positions, Array]:
            rows = arrays[0].copy()
            with np.errstate(over="ignore"):
                rows[:, 0] = np.exp2(rows[:, 0] - bias + 1)
            rows[:, 1 + SIDE] += implicit
            return positions, rows

        none = torch.zeros(self._size, dtype=torch.int64, device=self._device)
        counts = torch.stack([none if some is None else some for some in self._counts])
        return Reading([_kept(counts)], decode)


def _count_on_host(bins: Tensor, size: int) -> Tensor:
    return torch.bincount(bins, minlength=size)


def _count_on_device(bins: Tensor, size: int) -> Tensor:
    # `bincount` would wait for the largest bin; integers may be scattered in deterministic mode.
    counts = torch.zeros(size, dtype=torch.int64, device=bins.device)
    return counts.scatter_add_(0, bins.long(), counts.new_ones(1).expand(bins.numel()))


def _kept(counts: Tensor) -> Tensor:
    """Of all bins [layers, all], the highest exponent in use and the BINS bins below it.

    The lowest exponent (zero and denormal numbers) counts as zero, the highest (NaN and Inf) not.
    """
    layers = len(counts)
    by_exponent = counts.view(layers, 2, -1, PARTS)
    exponents = by_exponent.shape[2]
    number = torch.arange(exponents, device=counts.device)
    used = (by_exponent.sum((1, 3)) > 0) & (number < exponents - 1)
    # With fewer octaves above the denormal numbers those would not fit into the bin around zero.
    top = (used * number).amax(1).clamp_(min=OCTAVES)
    at = top[:, None] + number[:OCTAVES] - (OCTAVES - 1)
    index = at[:, None, :, None].expand(layers, 2, OCTAVES, PARTS)
    sides = by_exponent.gather(2, index).view(layers, 2, SIDE)
    finite = by_exponent[:, :, :-1].sum((1, 2, 3))
    around_zero = finite - sides.sum((1, 2))
    return torch.cat([top[:, None], sides[:, 1].flip(1), around_zero[:, None], sides[:, 0]], 1)
