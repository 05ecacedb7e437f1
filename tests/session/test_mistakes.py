"""A trace that saw nothing says why; one that saw what it should says nothing."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch
from spiking import dataset, loss_fn
from torch import nn
from torch.utils.data import DataLoader

from gradtrace import gradtrace
from gradtrace.session.mistakes import Seen, mistakes

GOOD = Seen(
    steps=10, backwards=10, others=0, gradients=True, losses=True, by_hand=False, loader=True,
    batches=10,
)  # fmt: skip
NOTHING = Seen(0, 0, 0, False, False, False, False, 0)


@pytest.mark.parametrize(
    ("seen", "sources"),
    [
        (GOOD, []),
        (replace(GOOD, others=30), []),  # a GAN of which one model is traced
        (replace(GOOD, backwards=0), []),  # gradients that were written by hand
        (replace(NOTHING, loader=True, batches=5), []),  # a loop that only looks at the data
        (replace(NOTHING, backwards=7), ["steps"]),
        (replace(NOTHING, others=7, loader=True, batches=7), ["steps"]),
        (replace(GOOD, backwards=0, gradients=False, losses=False), ["gradients"]),
        (replace(GOOD, backwards=0, gradients=False), []),  # a loop that logs its loss
        (replace(GOOD, backwards=0, gradients=False, losses=False, by_hand=True), []),
        (replace(GOOD, batches=0), ["loader"]),
        (replace(GOOD, loader=False, batches=0), []),
    ],
)
def test_mistakes_are_told_from_what_is_meant(seen: Seen, sources: list[str]) -> None:
    """Each is named by its source, once, and nothing else is."""
    assert [source for source, _ in mistakes(seen)] == sources


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("a copy", "and not a copy of it"),
        ("no step", "call trace.step()"),
        ("another loader", "trace.batches(loader)"),
        ("frozen", "no backward reached this model"),
    ],
)
def test_what_is_missing_is_noted(
    mistake: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A trace with nothing to see says why, and what to do."""
    model: nn.Module = nn.Linear(6, 1)
    trained = copy.deepcopy(model) if mistake == "a copy" else model
    if mistake == "frozen":
        trained = nn.Sequential(nn.Linear(6, 6), model.requires_grad_(False))
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    loader, other = DataLoader(dataset(), batch_size=40), DataLoader(dataset(), batch_size=40)
    given = other if mistake == "another loader" else loader
    with (
        caplog.at_level(logging.WARNING, "gradtrace"),
        gradtrace(model, loader=given, directory=None) as trace,
    ):
        for x, y in loader:
            loss_fn(trained(x), y).backward()
            if mistake != "no step":
                optimizer.step()
            optimizer.zero_grad()
    assert any(told in note.message for note in trace.notes), trace.notes
    assert told in caplog.text
