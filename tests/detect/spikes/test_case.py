"""What a test for causes is given."""

from __future__ import annotations

import dataclasses

from spike_records import record, spikes_of

from gradtrace.detect.spikes.case import Case, unknown
from gradtrace.detect.spikes.history import History


def test_recent_steps_end_with_that_of_the_spike() -> None:
    """What the history has of later ones is not shown."""
    history = History()
    facts = [history.add(record(step), {}) for step in range(95, 106)]
    [spike] = spikes_of([record(step, norm=9.0 if step == 100 else 1.0) for step in range(101)])
    case = Case(spike, facts[5], history)
    assert [f.step for f in case.recent] == list(range(95, 101))
    earlier = dataclasses.replace(spike, step=96)
    assert [f.step for f in Case(earlier, facts[1], history).recent] == [95, 96]


def test_what_is_unknown_has_no_confidence() -> None:
    """And says why."""
    cause = unknown("length", "nothing has one")
    assert (cause.kind, cause.confidence) == ("length", None)
    assert cause.message == "not enough data: nothing has one"
