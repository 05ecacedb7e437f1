"""What each step measures: by its number, and everything for a while after a spike."""

from __future__ import annotations

from gradtrace.sampling import Due, Sampling


class Schedule:
    """The sampling of one run as it goes on.

    `step` is the number of the present step, kept by the training thread. `burst` may be called
    from any thread: it writes one number, which the training thread reads when a step begins.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.step = 0
        self._burst_until = -1

    def due(self, step: int) -> Due:
        """What a step measures."""
        return self.sampling.due(step, self._burst_until)

    def burst(self) -> None:
        """Has the next `Sampling.burst` steps measure everything."""
        self._burst_until = max(self._burst_until, self.step + self.sampling.burst + 1)

    @property
    def beginning(self) -> bool:
        """Whether the run is in its first steps, which find out what its loop is like."""
        return self.step < max(2, self.sampling.first)
