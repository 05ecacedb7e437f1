"""A time in which the disk refuses what the run log writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

LONGEST_PAUSE = 60.0
"""Seconds between two attempts."""


class Outage:
    """Says once that writing fails and once that it works again; spaces the attempts.

    Pauses begin with a second and double, up to `LONGEST_PAUSE`. `active` from the first failure
    to the first success.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float], on_error: Callable[[str], None]
    ) -> None:
        self.active = False
        self._path = path
        self._clock = clock
        self._on_error = on_error
        self._pause = 0.5
        self._retry_at = 0.0
        self._lost_before = 0

    def waiting(self) -> bool:
        """Whether the next attempt is not due yet."""
        return self.active and self._clock() < self._retry_at

    def begin(self, error: OSError, lost: int) -> None:
        """An attempt failed; `lost` counts the records lost so far."""
        first, self.active = not self.active, True
        self._pause = 1.0 if first else min(self._pause * 2, LONGEST_PAUSE)
        self._retry_at = self._clock() + self._pause
        if first:
            self._lost_before = lost
            self._on_error(
                f"the run log at {self._path} cannot be written ({error.strerror or error}); "
                "training goes on and recent records are kept in memory: free space or bring the "
                "directory back, and they will be written"
            )

    def end(self, lost: int) -> None:
        """An attempt succeeded, with so many records lost by now."""
        self.active = False
        self._on_error(
            f"the run log at {self._path} is written again; "
            f"{lost - self._lost_before} records were lost meanwhile"
        )
