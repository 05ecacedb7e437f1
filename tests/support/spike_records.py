"""Records made by hand for the detectors: a healthy run in which single steps are replaced."""

from __future__ import annotations

from collections.abc import Sequence

from build import LAYERS as NAMES
from build import healthy as record

from gradtrace.detect.spikes.detector import SpikeDetector
from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.records import Event, StepRecord

__all__ = ["NAMES", "ORDER", "detector", "record", "run"]

ORDER = {"embed": 0, "block": 1, "head": 2}


def detector(rule: SpikeRule | None = None) -> SpikeDetector:
    return SpikeDetector(rule or SpikeRule(), ORDER)


def run(found: SpikeDetector, records: Sequence[StepRecord]) -> list[Event]:
    events: list[Event] = []
    for one in records:
        events += found.update(one)
    return events + list(found.finish())
