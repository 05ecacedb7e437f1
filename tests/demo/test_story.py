"""The demo from end to end, a smaller one."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from gradtrace.attribution.bad_samples import find_bad
from gradtrace.demo import run_demo
from gradtrace.demo.documents import Documents
from gradtrace.demo.training import Size
from gradtrace.records import StepRecord
from gradtrace.runlog.reader import load_run

SMALL = Size(documents=960, width=64, depth=1, batch=8)
TINY = Size(documents=960, width=64, depth=2, batch=4)


def test_demo_trains_and_sums_up(tmp_path: Path) -> None:
    """A short demo lowers the loss, knows its samples, and prints a sample and the summary."""
    console = Console(width=100)
    with console.capture() as capture:
        path = run_demo(
            steps=12, size=Size(batch=4), directory=tmp_path, exporters=(), console=console
        )
    text = capture.get()
    assert path.parent == tmp_path
    assert "What the model writes now" in text
    assert "12 steps" in text and "median norm" in text
    run = load_run(path)
    assert run.info["config"]["steps"] == 12
    losses = run.steps.column("loss").to_pylist()
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.2
    # The head shares the embedding's tensor, so it counts once.
    layers = set(run.gradients.column("layer").to_pylist())
    assert "token.weight" in layers and "head.weight" not in layers
    [first, *_] = run.records()
    assert isinstance(first, StepRecord)
    assert len(first.batches[0].sample_ids or ()) == 4


@pytest.mark.slow
def test_demo_finds_the_corrupted_documents(tmp_path: Path) -> None:
    """The demo's whole story: spikes, the documents behind them, the period, a run without."""
    console = Console(width=120)
    with console.capture() as capture:
        path = run_demo(steps=420, size=SMALL, directory=tmp_path, exporters=(), console=console)
    text = capture.get()
    bad = find_bad(load_run(path))
    corrupted = Documents(count=SMALL.documents, corrupted=5).corrupted
    named = {sample.id for sample in bad.samples}
    assert named <= set(corrupted)
    assert len(named) >= 3
    assert "Once more without them" in text and "no spikes in" in text
    assert "every 120 steps" in text
    assert "max_norm=" in text


def test_demo_stops_in_time(tmp_path: Path) -> None:
    """With `seconds` the demo stops at the first step after them."""
    path = run_demo(
        steps=10_000,
        seconds=0.0,
        size=SMALL,
        directory=tmp_path,
        exporters=(),
        console=Console(quiet=True),
    )
    assert load_run(path).steps.num_rows <= 1
