"""What is measured when, and a burst that another thread asks for."""

from __future__ import annotations

import sys
import threading

import pytest

from gradtrace.collect.schedule import Schedule
from gradtrace.sampling import Sampling

SPARSE = Sampling(gradients=0, activations=100, updates=100, histograms=0, first=0, burst=5)


def measured(schedule: Schedule, steps: int) -> list[int]:
    """The steps that measure activations, as a training thread would find them."""
    found = []
    for _ in range(steps):
        if schedule.due(schedule.step).activations:
            found.append(schedule.step)
        schedule.step += 1
    return found


def test_without_bursts_the_sampling_decides() -> None:
    """Every so many steps, and on the first ones."""
    assert measured(Schedule(SPARSE), 250) == [0, 100, 200]
    first = Schedule(Sampling(activations=4, first=3))
    assert measured(first, 10) == [0, 1, 2, 4, 8]


def test_a_burst_is_the_next_steps() -> None:
    """Asked for during a step it covers that many steps after it; what is off stays off."""
    schedule = Schedule(SPARSE)
    schedule.step = 10
    schedule.burst()
    assert [schedule.due(step).activations for step in range(9, 18)] == [True] * 7 + [False] * 2
    assert not any(schedule.due(step).gradients for step in range(9, 18))
    assert schedule.due(12).full


def test_a_later_burst_makes_it_longer_and_an_earlier_one_no_shorter() -> None:
    """Whatever order they come in."""
    schedule = Schedule(SPARSE)
    schedule.step = 10
    schedule.burst()
    schedule.step = 12
    schedule.burst()
    schedule.step = 3  # as if an old alarm came late
    schedule.burst()
    assert schedule.due(17).activations and not schedule.due(18).activations


def test_bursts_from_other_threads() -> None:
    """While several threads ask and training goes on, none is lost and none lasts too long."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        schedule = Schedule(Sampling(activations=10**9, first=0, burst=50))
        start, stop = threading.Barrier(5), threading.Event()

        def ask() -> None:
            start.wait(60)
            while not stop.is_set():
                schedule.burst()

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        start.wait(60)
        for _ in range(3000):
            schedule.due(schedule.step)
            schedule.step += 1
        stop.set()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    schedule.burst()
    last = schedule.step
    due = [schedule.due(step).activations for step in range(last, last + 52)]
    assert due == [True] * 51 + [False]


@pytest.mark.parametrize(("first", "steps"), [(0, 2), (1, 2), (10, 10)])
def test_the_beginning_is_two_steps_at_least(first: int, steps: int) -> None:
    """So many steps look at what the loop is like, also when nothing more is measured on them."""
    schedule = Schedule(Sampling(first=first))
    found = []
    for schedule.step in range(15):
        found.append(schedule.beginning)
    assert found == [True] * steps + [False] * (15 - steps)
