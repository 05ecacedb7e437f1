"""The demo: its model, its data and its run, a short one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gradtrace.attribution.bad_samples import find_bad
from gradtrace.demo import run_demo
from gradtrace.demo.charlm import CharLM
from gradtrace.demo.documents import KINDS, LENGTH, Documents, collate
from gradtrace.demo.text import TextWindows, help_text
from gradtrace.demo.training import token_loss, warm_cosine
from gradtrace.records import StepRecord
from gradtrace.runlog import load_run


def test_demo_trains_and_sums_up(tmp_path: Path) -> None:
    """A short demo lowers the loss, knows its samples, and prints a sample and the summary."""
    console = Console(width=100)
    with console.capture() as capture:
        path = run_demo(steps=12, batch_size=4, directory=tmp_path, exporters=(), console=console)
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


def test_documents() -> None:
    """Most documents are real text; the corrupted ones are long, and told apart by kind."""
    data = Documents(count=300, corrupted=5)
    assert len(data) == 300 and len(data.corrupted) == 5
    assert set(data.corrupted.values()) == set(KINDS)
    text = help_text()
    for index in range(300):
        if index in data.corrupted:
            assert len(data[index]) == LENGTH
            assert "<" in data.decode(data[index])
        else:
            assert data.decode(data[index]) in text
            assert 32 <= len(data[index]) <= 64
    again = Documents(count=300, corrupted=5)
    assert again.corrupted == data.corrupted
    assert all(torch.equal(again[i], data[i]) for i in range(300))
    with pytest.raises(ValueError, match="at most"):
        Documents(count=10**6)


def test_collate_pads_and_ignores() -> None:
    """Inputs are padded to the longest; the padding counts in no loss."""
    inputs, targets = collate([torch.tensor([1, 2, 3]), torch.tensor([4, 5])])
    assert inputs.tolist() == [[1, 2], [4, 0]]
    assert targets.tolist() == [[2, 3], [5, -100]]
    logits = torch.zeros(2, 2, 10)
    loss = token_loss(logits, targets)
    assert float(loss) == pytest.approx(3 * math.log(10) / (2 * 48))


@pytest.mark.slow
def test_demo_finds_the_corrupted_documents(tmp_path: Path) -> None:
    """The demo's whole story: spikes, the documents behind them, the period, a run without."""
    console = Console(width=120)
    with console.capture() as capture:
        path = run_demo(directory=tmp_path, exporters=(), console=console)
    text = capture.get()
    bad = find_bad(load_run(path))
    corrupted = Documents(count=2000, corrupted=5).corrupted
    named = {sample.id for sample in bad.samples}
    assert named <= set(corrupted)
    assert len(named) >= 3
    assert "Once more without them" in text and "no spikes in" in text
    assert "every 125 steps" in text
    assert "max_norm=" in text


def test_demo_stops_in_time(tmp_path: Path) -> None:
    """With `seconds` the demo stops at the first step after them."""
    path = run_demo(
        steps=10_000, seconds=0.0, directory=tmp_path, exporters=(), console=Console(quiet=True)
    )
    assert load_run(path).steps.num_rows <= 1


def test_model_size() -> None:
    """The model has about a million parameters."""
    model = CharLM(100)
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6


def test_model_is_causal() -> None:
    """What the model predicts depends on earlier characters only."""
    torch.manual_seed(0)
    model = CharLM(20, length=16, width=16, heads=2, depth=2)
    tokens = torch.randint(0, 20, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 20
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9], after[:, 9])


def test_generation_goes_beyond_the_window() -> None:
    """Generated text starts with the prompt and may be longer than the model's window."""
    model = CharLM(20, length=8, width=16, heads=2, depth=1)
    prompt = torch.tensor([1, 2, 3])
    tokens = model.generate(prompt, 30)
    assert tokens.shape == (33,)
    assert tokens[:3].equal(prompt)


def test_windows_shift_by_one() -> None:
    """A window's targets are its inputs one character on, and windows follow each other."""
    data = TextWindows("hello brave new world", length=5)
    assert len(data) == 4
    inputs, targets = data[1]
    assert data.decode(inputs) == " brav"
    assert data.decode(targets) == "brave"


def test_text_is_long_enough() -> None:
    """Python's help texts give a few hundred thousand characters."""
    assert len(help_text()) > 200_000


@pytest.mark.parametrize(("step", "factor"), [(0, 1 / 40), (39, 1.0), (40, 1.0), (1000, 0.1)])
def test_schedule(step: int, factor: float) -> None:
    """The learning rate rises for 40 steps and falls to a tenth at the last."""
    assert warm_cosine(step, 1000) == pytest.approx(factor)
