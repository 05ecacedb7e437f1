"""A traced run is the untraced run, bit for bit."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import LOOPS, Outcome

from gradtrace import Sampling, Trace, gradtrace

EVERYTHING = Sampling(gradients=1, activations=1, updates=1, histograms=1)
DEFAULTS = Sampling(first=2, activations=3, updates=3)


def run(
    name: str, sampling: Sampling | None, directory: Path | None
) -> tuple[Outcome, Trace | None]:
    traces: list[Trace] = []

    def tracing(models: Any, loader: Any) -> Any:
        if sampling is None:
            return nullcontext()
        traces.append(gradtrace(models, loader=loader, sampling=sampling, directory=directory))
        return traces[0]

    outcome = LOOPS[name](tracing)
    return outcome, traces[0] if traces else None


def bits(value: torch.Tensor) -> bytes:
    flat = value.contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@pytest.mark.parametrize("sampling", [EVERYTHING, DEFAULTS], ids=["everything", "some"])
@pytest.mark.parametrize("name", LOOPS)
def test_training_is_bitwise_equal(name: str, sampling: Sampling, tmp_path: Path) -> None:
    """Parameters, buffers, gradients, losses and the random state do not depend on the trace."""
    bare, _ = run(name, None, None)
    traced, trace = run(name, sampling, tmp_path)
    assert trace is not None
    assert [note.source for note in trace.notes] == (["activations"] if name == "compiled" else [])
    assert bare.numbers.keys() == traced.numbers.keys()
    for key, value in bare.numbers.items():
        assert bits(value) == bits(traced.numbers[key]), key


@pytest.mark.parametrize("name", LOOPS)
def test_everything_is_counted_exactly(name: str) -> None:
    """Steps, losses, clipping calls, skipped steps and batches are those of the loop."""
    truth, trace = run(name, EVERYTHING, None)
    assert trace is not None
    steps = trace.steps
    assert [s.step for s in steps] == list(range(len(truth.losses)))
    for record, losses, clips, batches in zip(
        steps, truth.losses, truth.clips, truth.batches, strict=True
    ):
        assert len(record.losses) == len(losses)
        for got, expected in zip(record.losses, losses, strict=True):
            assert got == pytest.approx(expected, nan_ok=True, rel=1e-6)
        if all(map(math.isfinite, losses)):
            assert record.loss == pytest.approx(sum(losses) / len(losses))
        assert (record.clip.calls if record.clip is not None else 0) == clips
        assert [batch.sample_ids for batch in record.batches] == batches
    assert [s.step for s in steps if s.skipped] == truth.skipped
    assert [e.step for e in trace.events if e.kind == "skipped_step"] == truth.skipped
