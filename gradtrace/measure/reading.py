"""Measurements whose values are still on their device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from gradtrace.measure.rows import Positions, unscale
from gradtrace.records import Array


class Pending:
    """A tensor's values, which are not known yet.

    Made in the training thread around a `tensor` that nobody will change. The hand-over brings the
    values and lets the tensor go; from then on `values` holds them, float64 in the tensor's shape.
    """

    __slots__ = ("tensor", "values")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.values: Array | None = None

    def arrived(self, values: Array) -> None:
        """The values are here. Background thread."""
        self.values = values
        self.tensor = None

    @property
    def array(self) -> Array:
        """The values; RuntimeError when they have not arrived."""
        if self.values is None:
            raise RuntimeError("this value is still under way: only the hand-over may bring it")
        return self.values

    @property
    def number(self) -> float:
        """The value of a tensor of one element."""
        return float(self.array.reshape(-1)[0])


Number = float | Pending


def pending(value: float | Tensor) -> Number:
    """A number as it is, a tensor of one element as one that will be known."""
    return Pending(value) if isinstance(value, Tensor) else float(value)


def known(value: Number) -> float:
    """The number, which has arrived."""
    return value.number if isinstance(value, Pending) else value


class Reading:
    """One measurement of some layers: tensors on their device, and how their values become rows.

    `decode` gets the tensors' values as float64 arrays, in order, and returns the layers' positions
    [n] and rows [n, columns]; most have the columns of `gradtrace.measure.rows.ROW`. `divisor`, if
    any, is the AMP loss scale that the values are still multiplied by.
    """

    __slots__ = ("_decode", "divisor", "pending")

    def __init__(
        self,
        tensors: Sequence[Tensor],
        decode: Callable[[Sequence[Array]], tuple[Positions, Array]],
    ) -> None:
        self.pending = [Pending(tensor) for tensor in tensors]
        self.divisor: Pending | None = None
        self._decode = decode

    def cells(self) -> Iterator[Pending]:
        """Everything that has to arrive before `rows` can be asked for."""
        yield from self.pending
        if self.divisor is not None:
            yield self.divisor

    def decoded(self) -> tuple[Positions, Array]:
        """Positions and rows as they were measured, loss scale and all. Background thread."""
        return self._decode([cell.array for cell in self.pending])

    def rows(self) -> tuple[Positions, Array]:
        """The same without the loss scale, for rows with the columns of ROW."""
        positions, rows = self.decoded()
        return positions, rows if self.divisor is None else unscale(rows, self.divisor.number)
