"""Which gradients have been read as they are now, and what they are still multiplied by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Pending, Reading


class GradientReader:
    """Reads a gradient once, before anything changes it. Training thread only.

    Gradients are read at the first of {clipping call, optimizer step}, after `GradScaler.unscale_`
    where there is one; a reading stays right until a backward writes, or somebody throws away, the
    gradient. Clipping and optimizers are announced: what they change is not read again.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._fresh: set[int] = set()
        self._scaled: set[int] = set()

    def stale(self, positions: Iterable[int]) -> None:
        """What was read of these gradients no longer counts: they are others now."""
        self._fresh.difference_update(positions)

    def gone(self, positions: Iterable[int]) -> None:
        """These gradients were used or thrown away: what comes next is another's."""
        self._fresh.difference_update(positions)
        self._scaled.difference_update(positions)

    def scaled(self, positions: Iterable[int]) -> None:
        """The gradients at `positions` are multiplied by the AMP loss scale."""
        self._scaled.update(positions)

    def unscaled(self, positions: Iterable[int]) -> None:
        """The scaler has divided these gradients by the loss scale, in place."""
        self._scaled.difference_update(positions)
        self._fresh.difference_update(positions)

    def is_scaled(self, positions: Iterable[int]) -> bool:
        """Whether any of these gradients is still multiplied by the AMP loss scale."""
        return bool(self._scaled) and not self._scaled.isdisjoint(positions)

    def read(
        self, positions: Sequence[int], *, full: bool, scale: Tensor | None = None
    ) -> tuple[list[Reading], list[int]]:
        """Starts measuring those of `positions` whose numbers are not known yet; returns them too.

        `scale` is the AMP loss scale; it divides what has not been unscaled.
        """
        stale = [i for i in positions if i not in self._fresh]
        readings, present = self.read_again(stale, full=full, scale=scale)
        self._fresh.update(present)
        return readings, present

    def histograms(self, positions: Sequence[int], *, scale: Tensor | None = None) -> list[Reading]:
        """Starts counting the values at `positions` by size; `scale` as in `read`."""
        scaled = [i for i in positions if i in self._scaled] if scale is not None else []
        readings = self._parameters.count_gradients(scaled)
        _divide(readings, scale)
        divided = set(scaled)
        rest = [i for i in positions if i not in divided]
        return readings + self._parameters.count_gradients(rest)

    def read_again(
        self, positions: Sequence[int], *, full: bool, scale: Tensor | None = None
    ) -> tuple[list[Reading], list[int]]:
        """Starts measuring `positions` as they are now; also returns those that have a gradient."""
        scaled = [i for i in positions if i in self._scaled] if scale is not None else []
        if not scaled:
            return self._parameters.read_gradients(positions, full=full)
        readings, present = self._parameters.read_gradients(scaled, full=full)
        _divide(readings, scale)
        rest = [i for i in positions if i not in self._scaled]
        if rest:
            others, also = self._parameters.read_gradients(rest, full=full)
            readings, present = readings + others, present + also
        return readings, present

    def is_fresh(self, positions: Iterable[int]) -> bool:
        """Whether the numbers of all of `positions` are known."""
        return self._fresh.issuperset(positions)


def _divide(readings: Iterable[Reading], scale: Tensor | None) -> None:
    """Notes the loss scale that these readings' values are multiplied by."""
    if scale is not None:
        for reading in readings:
            reading.divisor = Pending(scale)
