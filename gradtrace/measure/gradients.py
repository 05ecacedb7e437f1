"""When gradients are read: once a step, before anything changes them.

They are read at the first of {clipping call, optimizer step}, after `GradScaler.unscale_` where
there is one. What a loop does to gradients with code of its own cannot be announced; it shows as
a changed version between the end of a backward and the step. Once that was seen, and on the first
steps, gradients are read `eagerly`, at the end of each backward, so that the numbers from before
the change exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Pending, Reading


class GradientReader:
    """Knows which parameters' numbers of the open step are still right. Training thread only."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._fresh: set[int] = set()
        self._known = parameters.versions()
        self._scaled: set[int] = set()

    def before_backward(self) -> list[tuple[int, int] | None]:
        """The gradients' versions, to be given to `after_backward`."""
        return self._parameters.versions()

    def after_backward(self, before: list[tuple[int, int] | None]) -> list[int]:
        """The positions whose gradients a backward wrote; their old numbers no longer count."""
        now = self._parameters.versions()
        if len(before) < len(now):  # parameters were added meanwhile
            before = before + [None] * (len(now) - len(before))
        written = [i for i, v in enumerate(now) if v is not None and v != before[i]]
        self._fresh.difference_update(written)
        self._known = now
        return written

    def scaled(self, positions: Iterable[int]) -> None:
        """The gradients at `positions` are multiplied by the AMP loss scale."""
        self._scaled.update(positions)

    def unscaled(self, positions: Iterable[int]) -> None:
        """The scaler has divided these gradients by the loss scale, in place."""
        self._scaled.difference_update(positions)
        self._fresh.difference_update(positions)

    def is_scaled(self, positions: Iterable[int]) -> bool:
        """Whether any of these gradients is still multiplied by the AMP loss scale."""
        return not self._scaled.isdisjoint(positions)

    def touched(self, positions: Iterable[int]) -> list[int]:
        """The positions whose gradients somebody changed since they were last known.

        A gradient that was removed is not counted: `zero_grad` does that.
        """
        now = self._parameters.versions()
        known = self._known
        return [
            i for i in positions if now[i] is not None and (i >= len(known) or now[i] != known[i])
        ]

    def settle(self) -> None:
        """Takes the gradients' present versions as known: what changed them is accounted for."""
        self._known = self._parameters.versions()

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

    def next_step(self) -> None:
        """A step was closed: nothing measured so far belongs to the next one."""
        self._fresh.clear()
        self._scaled.clear()


def _divide(readings: Iterable[Reading], scale: Tensor | None) -> None:
    """Notes the loss scale that these readings' values are multiplied by."""
    if scale is not None:
        for reading in readings:
            reading.divisor = Pending(scale)
