"""Measures every step of any PyTorch training loop, without slowing or changing it."""

from gradtrace.records import (
    BatchRef,
    Clip,
    Event,
    LayerTable,
    NonFinite,
    RunInfo,
    RunNote,
    SkippedStep,
    StepRecord,
)
from gradtrace.runlog import Run, load_run
from gradtrace.sampling import Sampling
from gradtrace.session import Trace, gradtrace

__all__ = [
    "BatchRef",
    "Clip",
    "Event",
    "LayerTable",
    "NonFinite",
    "Run",
    "RunInfo",
    "RunNote",
    "Sampling",
    "SkippedStep",
    "StepRecord",
    "Trace",
    "gradtrace",
    "load_run",
]
