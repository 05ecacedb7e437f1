"""The background thread keeps up with whatever the training thread hands over."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from gradtrace.assemble import thread as background
from gradtrace.assemble.thread import Background
from gradtrace.guard import Guard
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import LateLog, Step
from gradtrace.records import Record, StepRecord
from gradtrace.sampling import Sampling

WAITING = 1000
DUE = Sampling().due(1)


def nothing(source: str, text: str) -> None:
    """The errors themselves fail the test, see conftest.py."""


class Kept:
    """A sink that keeps the steps, and tells when it has the last one."""

    def __init__(self, last: int) -> None:
        self.steps: list[int] = []
        self.complete = threading.Event()
        self._last = last

    def __call__(self, records: Sequence[Record]) -> None:
        self.steps += [record.step for record in records if isinstance(record, StepRecord)]
        if self.steps and self.steps[-1] == self._last:
            self.complete.set()


def handed_over(steps: int) -> Handoff[Step | LateLog]:
    """A hand-over in which that many steps wait."""
    handoff: Handoff[Step | LateLog] = Handoff()
    for number in range(steps):
        assert handoff.put(Step(DUE, number=number))
    return handoff


def test_flushing_waits_for_all_that_was_handed_over() -> None:
    """After `flush` a queue that was many turns long has reached the sinks, in order."""
    kept = Kept(WAITING - 1)
    thread = Background(handed_over(WAITING), [], [kept], Guard(nothing), name="test")
    thread.start()
    assert thread.flush(time.monotonic() + 30)
    assert kept.steps == list(range(WAITING))
    assert thread.stop(time.monotonic() + 30)


def test_a_thread_that_is_behind_does_not_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a full turn's worth is waiting the next turn follows without a pause."""
    monkeypatch.setattr(background, "POLL", 60.0)
    # The last step stays held back until somebody asks; the one before it must come by itself.
    kept = Kept(WAITING - 2)
    thread = Background(handed_over(WAITING), [], [kept], Guard(nothing), name="test")
    thread._wake.set()  # the one time that the thread is woken
    thread.start()
    assert kept.complete.wait(30)
    assert thread.stop(time.monotonic() + 30)
    assert kept.steps == list(range(WAITING))
