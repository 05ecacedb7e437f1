"""Records made by hand for the detectors: a healthy run in which single steps are replaced."""

from __future__ import annotations

from collections.abc import Sequence

from build import LAYERS as NAMES
from build import healthy as record

from gradtrace.detect.spikes.detector import SpikeDetector
from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.records import Cause, Event, Spike, StepRecord

__all__ = ["NAMES", "ORDER", "causes", "detector", "record", "run", "spikes_of", "sure"]

ORDER = {"embed": 0, "block": 1, "head": 2}


def detector(rule: SpikeRule | None = None) -> SpikeDetector:
    return SpikeDetector(rule or SpikeRule(), ORDER)


def run(found: SpikeDetector, records: Sequence[StepRecord]) -> list[Event]:
    events: list[Event] = []
    for one in records:
        events += found.update(one)
    return events + list(found.finish())


def spikes_of(records: Sequence[StepRecord]) -> list[Spike]:
    """The spikes as they are told at first."""
    return [e for e in run(detector(), records) if isinstance(e, Spike) and e.duration == 1]


def causes(spike: Spike) -> dict[str, Cause]:
    """By kind."""
    return {cause.kind: cause for cause in spike.causes}


def sure(spike: Spike) -> set[str]:
    """Kinds of causes that there was enough data for."""
    return {cause.kind for cause in spike.causes if cause.confidence is not None}
