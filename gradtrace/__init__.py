"""Measures every step of any PyTorch training loop, without slowing or changing it."""

from gradtrace.attribution import Attribution, SampleScore, attribute
from gradtrace.detect.rule import SpikeRule
from gradtrace.detect.spikes import find_spikes
from gradtrace.histograms import LayerHistograms
from gradtrace.records import (
    BatchRef,
    Cause,
    Clip,
    ClipFinding,
    Event,
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
from gradtrace.runlog import Run, load_run
from gradtrace.sampling import Sampling
from gradtrace.session import Trace, gradtrace
from gradtrace.skipping import SkipBatches, SkipSamples
from gradtrace.spikefiles import SpikeFiles
from gradtrace.suspects import Suspects, SuspectSample, suspects

__all__ = [
    "Attribution",
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
    "attribute",
    "find_spikes",
    "gradtrace",
    "load_run",
    "suspects",
]
