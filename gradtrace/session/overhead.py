"""What a trace costs the training thread."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradtrace.guard import Guard
from gradtrace.session.recent import Recent


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a trace spent on the training thread: in all, per step, and relative to the step time.

    NaN until there are steps to relate it to.
    """

    seconds: float
    per_step: float
    ratio: float

    @classmethod
    def of(cls, guard: Guard, recent: Recent) -> Overhead:
        """The state so far. Any thread."""
        seconds, count = guard.seconds, recent.count
        first, last = recent.first_time, recent.last_time
        lasted = (last - first) / (count - 1) if count > 1 and first and last else math.nan
        per_step = seconds / count if count else math.nan
        return cls(seconds, per_step, per_step / lasted if lasted else math.nan)
