"""Measures every step of any PyTorch training loop, without slowing or changing it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradtrace.attribution.bad_samples import BadBatch, BadList, BadSample, find_bad
    from gradtrace.attribution.per_sample import Attribution, SampleScore, attribute
    from gradtrace.attribution.refetch import suspects
    from gradtrace.attribution.skip import SkipBatches, SkipSamples
    from gradtrace.attribution.spike_files import SpikeFiles
    from gradtrace.attribution.suspects import Suspects, SuspectSample
    from gradtrace.detect.spikes.detector import find_spikes
    from gradtrace.detect.spikes.rule import SpikeRule
    from gradtrace.records import (
        BatchRef,
        Cause,
        Clip,
        ClipFinding,
        Event,
        LayerHistograms,
        LayerRise,
        LayerTable,
        LevelShift,
        NonFinite,
        RunInfo,
        RunNote,
        SkippedStep,
        Spike,
        StepRecord,
    )
    from gradtrace.runlog.reader import Run, load_run
    from gradtrace.sampling import Sampling
    from gradtrace.session.trace import Trace, gradtrace

    __version__: str

__all__ = [
    "Attribution",
    "BadBatch",
    "BadList",
    "BadSample",
    "BatchRef",
    "Cause",
    "Clip",
    "ClipFinding",
    "Event",
    "LayerHistograms",
    "LayerRise",
    "LayerTable",
    "LevelShift",
    "NonFinite",
    "Run",
    "RunInfo",
    "RunNote",
    "SampleScore",
    "Sampling",
    "SkipBatches",
    "SkipSamples",
    "SkippedStep",
    "Spike",
    "SpikeFiles",
    "SpikeRule",
    "StepRecord",
    "SuspectSample",
    "Suspects",
    "Trace",
    "__version__",
    "attribute",
    "find_bad",
    "find_spikes",
    "gradtrace",
    "load_run",
    "suspects",
]

_MODULES = ("exporter", "exporters", "metrics", "monitoring", "plots", "sampling", "testing")
_WHERE = {
    "gradtrace.attribution.bad_samples": ("BadBatch", "BadList", "BadSample", "find_bad"),
    "gradtrace.attribution.per_sample": ("Attribution", "SampleScore", "attribute"),
    "gradtrace.attribution.refetch": ("suspects",),
    "gradtrace.attribution.skip": ("SkipBatches", "SkipSamples"),
    "gradtrace.attribution.spike_files": ("SpikeFiles",),
    "gradtrace.attribution.suspects": ("SuspectSample", "Suspects"),
    "gradtrace.detect.spikes.detector": ("find_spikes",),
    "gradtrace.detect.spikes.rule": ("SpikeRule",),
    "gradtrace.runlog.reader": ("Run", "load_run"),
    "gradtrace.sampling": ("Sampling",),
    "gradtrace.session.trace": ("Trace", "gradtrace"),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}


# Hidden from type checkers, which would take any name at all for one of ours.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Loads what a public name needs when it is first asked for: torch takes seconds."""
        if name in _MODULES:
            return import_module(f"gradtrace.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "__version__":
            return import_module("importlib.metadata").version(__name__)
        value = getattr(import_module(_HOME.get(name, "gradtrace.records")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
