"""What a test for causes is given, and the two things it may say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gradtrace.detect.spikes.history import Facts, History
from gradtrace.records import Cause, Spike

FIXED = 0.7
"""Confidence in what no test can put a number on."""


@dataclass(frozen=True, slots=True)
class Case:
    """A spike, what is known of its step, and what came before it; `spike.causes` is empty yet."""

    spike: Spike
    facts: Facts
    history: History
    world_size: int = 1

    @property
    def recent(self) -> list[Facts]:
        """The steps up to that of the spike, oldest first."""
        return [facts for facts in self.history.steps if facts.step <= self.spike.step]


CauseTest = Callable[[Case], Iterator[Cause]]
"""Looks for one kind of cause. Yields what it finds, or `unknown` where it cannot tell."""


def unknown(kind: str, why: str) -> Cause:
    """The finding that there is too little to judge by."""
    return Cause(kind, f"not enough data: {why}", None)
