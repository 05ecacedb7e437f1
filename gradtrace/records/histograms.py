"""Histograms of many layers on one grid of bins, so that those of a group add up exactly.

The grid is log-linear, as HdrHistogram's: every octave (a factor of 2) has 4 bins of equal width,
on both sides of zero, and one bin around zero takes what is smaller than the 24 octaves below the
largest magnitude. So no bin is wider than a quarter of its values, whatever size they have, and a
layer's grid is another layer's, moved by whole octaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

OCTAVES = 24
"""Factors of 2 below the largest magnitude that are told apart."""
PARTS = 4
"""Bins an octave."""
SIDE = OCTAVES * PARTS
"""Bins on one side of zero."""
BINS = 2 * SIDE + 1
"""All bins: both sides and the one around zero."""


def _edges() -> Floats:
    octaves = np.exp2(np.arange(-OCTAVES, 0, dtype=np.float64))
    side = np.append(np.outer(octaves, 1 + np.arange(PARTS) / PARTS), 1.0)
    edges: Floats = np.concatenate([-side[::-1], side])
    edges.setflags(write=False)
    return edges


EDGES = _edges()
"""[BINS + 1], ascending: the bins' edges where the outermost is 1, for a limit to multiply."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerHistograms:
    """How the values of many layers are distributed at one step.

    `counts` [layers, BINS], int64, are the finite values in each bin, the middle one around zero;
    `limits` [layers], float64, the upper edge of the outermost bin in the tensor's own unit, so the
    edges are `limit * EDGES`. A bin holds the magnitudes from its inner edge up to, and without,
    its outer one.
    """

    names: tuple[str, ...]
    counts: Counts
    limits: Floats

    def __getitem__(self, name: str) -> tuple[Counts, Floats]:
        """A layer's counts [n] and edges [n + 1], as from `numpy.histogram`, where it has values.

        Raises KeyError naming what there is.
        """
        if name not in self.names:
            shown = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
            raise KeyError(f"no layer {name!r} in these histograms; they have: {shown}")
        at = self.names.index(name)
        return in_use(self.counts[at], float(self.limits[at]))

    def merged(self, layers: Sequence[int] | npt.NDArray[np.intp]) -> tuple[Counts, float] | None:
        """The counts [BINS] and the limit of the layers at these places together, exactly.

        None for no layers, and where loss scales that are no powers of 2 moved the grids apart.
        """
        layers = np.asarray(layers, dtype=np.intp)
        if not len(layers):
            return None
        counts = self.counts[layers]
        mantissas, exponents = np.frexp(self.limits[layers])
        if np.any(mantissas != mantissas[0]):
            return None
        below = exponents.max() - exponents
        total = np.zeros(BINS, np.int64)
        for octaves in np.unique(below):
            total += _moved(counts[below == octaves].sum(axis=0), min(int(octaves), OCTAVES))
        return total, float(self.limits[layers].max())

    @property
    def nbytes(self) -> int:
        """What the arrays take, in bytes."""
        return self.counts.nbytes + self.limits.nbytes

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        """Equal names, counts and limits."""
        if not isinstance(other, LayerHistograms):
            return NotImplemented
        return (
            self.names == other.names
            and np.array_equal(self.counts, other.counts)
            and np.array_equal(self.limits, other.limits)
        )

    __hash__ = None  # type: ignore[assignment]


def in_use(counts: Counts, limit: float, *, octaves: int = OCTAVES) -> tuple[Counts, Floats]:
    """Counts [n] and edges [n + 1] of the bins from the first to the last with values.

    The middle bin alone where there are none. `counts` is [BINS] of one grid, `limit` its outermost
    edge. With fewer `octaves` the bin around zero takes what is below them.
    """
    inner = (OCTAVES - octaves) * PARTS
    low, high = SIDE - inner, SIDE + inner + 1
    counts = np.concatenate([counts[:low], [counts[low:high].sum()], counts[high:]])
    edges = limit * np.concatenate([EDGES[: low + 1], EDGES[high:]])
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (low, low)
    return counts[first : last + 1], edges[first : last + 2]


def _moved(counts: Counts, octaves: int) -> Counts:
    """Counts [BINS] on a grid that reaches so many octaves further out."""
    if not octaves:
        return counts
    bins = octaves * PARTS
    moved = np.zeros_like(counts)
    moved[bins:SIDE] = counts[: SIDE - bins]
    moved[SIDE + 1 : BINS - bins] = counts[SIDE + 1 + bins :]
    moved[SIDE] = counts[SIDE - bins : SIDE + 1 + bins].sum()
    return moved
