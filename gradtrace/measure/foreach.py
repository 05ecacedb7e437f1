"""The accelerator plan: a few multi-tensor launches for all layers, and never a look at a value.

Per device: `_foreach_norm` of order 2 and inf (NaN and Inf show in both), and the non-finite
count as the zeroth norm of `g - g`, which is 0 where g is finite and NaN elsewhere. Mean, std and
zero count have no multi-tensor form: `full` readings add them tensor by tensor, other readings
leave them NaN. Values longer than 2^24 are cut, so that float32 counts stay exact and the
difference needs little memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradtrace.measure.flat import flatten
from gradtrace.measure.reading import Reading
from gradtrace.measure.rows import ABS, BAD, MAX, MIN, NONZERO, NORM, ROW, SUM, N, Positions
from gradtrace.records import Array

PIECE = 1 << 24


def read_foreach(
    positions: Sequence[int], tensors: Sequence[Tensor], *, full: bool
) -> list[Reading]:
    """Starts measuring tensors of any devices and dtypes; under `torch.no_grad()`."""
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[int], list[Tensor]]] = {}
    for position, tensor in zip(positions, tensors, strict=True):
        flat = flatten(tensor)
        at, pieces = groups.setdefault((flat.device, flat.dtype), ([], []))
        for piece in flat.split(PIECE) if flat.numel() > PIECE else (flat,):
            at.append(position)
            pieces.append(piece)
    return [_read_group(at, pieces, full) for at, pieces in groups.values()]


def _read_group(at: list[int], pieces: list[Tensor], full: bool) -> Reading:
    positions: Positions = np.asarray(at, dtype=np.intp)
    sizes = np.asarray([piece.numel() for piece in pieces], dtype=np.float64)
    # An empty tensor has no largest magnitude to ask for.
    kept = np.flatnonzero(sizes > 0)
    pieces = [pieces[i] for i in kept]
    dtype = torch.float64 if pieces and pieces[0].dtype is torch.float64 else torch.float32
    tensors: list[Tensor] = []
    if pieces:
        bad: list[Tensor] = []
        # Slices of the list bound the memory of the differences.
        for some in _slices(pieces):
            bad += torch._foreach_norm(torch._foreach_sub(some, some), 0, dtype=dtype)
        tensors = [
            torch.stack(torch._foreach_norm(pieces, 2, dtype=dtype)),
            torch.stack(torch._foreach_norm(pieces, float("inf"), dtype=dtype)),
            torch.stack(bad),
        ]
        if full:
            tensors.append(torch.stack([torch.sum(piece, dtype=dtype) for piece in pieces]))
            tensors.append(torch.stack(torch._foreach_norm(pieces, 0, dtype=dtype)))

    def decode(arrays: Sequence[Array]) -> tuple[Positions, Array]:
        rows = np.full((len(positions), len(ROW)), np.nan)
        rows[:, N] = sizes
        rows[sizes == 0, 1:] = 0.0
        for column, array in zip((NORM, ABS, BAD, SUM, NONZERO), arrays, strict=False):
            rows[kept, column] = array
        rows[:, [MIN, MAX]] = np.nan
        return positions, rows

    return Reading(tensors, decode)


def _slices(pieces: list[Tensor]) -> list[list[Tensor]]:
    slices: list[list[Tensor]] = []
    room = 0
    for piece in pieces:
        if piece.numel() > room:
            slices.append([])
            room = PIECE
        slices[-1].append(piece)
        room -= piece.numel()
    return slices
