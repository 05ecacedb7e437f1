"""What may lie behind a spike: evidence in numbers, and how far it goes.

Every finding says what it rests on. Where there is too little to tell, that is the finding: a
`Cause` whose confidence is None. Confidences are 1 - p of the test named in each function, or a
fixed judgement where no test applies.

A new cause is one function beside its like, in `causes_in_data`, `causes_in_time` or
`causes_in_numbers`, named in the TESTS of that file.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradtrace.detect.spikes import causes_in_data, causes_in_numbers, causes_in_time
from gradtrace.detect.spikes.case import Case, CauseTest
from gradtrace.detect.spikes.history import Facts, History
from gradtrace.records import Cause, Spike

TESTS: tuple[CauseTest, ...] = (
    *causes_in_data.TESTS,
    *causes_in_time.TESTS,
    *causes_in_numbers.TESTS,
)


class Causes:
    """Judges spikes in order, remembering them. One thread; some milliseconds a spike."""

    def __init__(
        self, history: History, *, world_size: int = 1, tests: Sequence[CauseTest] = TESTS
    ) -> None:
        self._history = history
        self._world_size = world_size
        self._tests = tests

    def of(self, spike: Spike, facts: Facts) -> tuple[Cause, ...]:
        """The causes found, most likely first, those that cannot be judged last."""
        case = Case(spike, facts, self._history, self._world_size)
        found = [cause for test in self._tests for cause in test(case)]
        self._history.add_spike(spike.step, spike.blamed)
        return tuple(sorted(found, key=lambda c: 1.0 if c.confidence is None else -c.confidence))
