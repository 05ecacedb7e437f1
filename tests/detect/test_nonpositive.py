"""A loss that is not above zero is told, once, when it is no coincidence."""

from __future__ import annotations

import math

import pytest
import torch
from spiking import dataset, loss_fn
from torch import nn
from torch.utils.data import DataLoader

from gradtrace import gradtrace
from gradtrace.detect.nonpositive import ENOUGH, NonPositiveLoss
from gradtrace.records import StepRecord


def noted(losses: list[float | None]) -> list[int]:
    """The steps at which a note is made."""
    detector = NonPositiveLoss()
    found = [
        note
        for step, loss in enumerate(losses)
        for note in detector.update(StepRecord(step, 10.0 + step, loss=loss, rank=2))
    ]
    assert detector.finish() == []
    for note in found:
        assert (note.time, note.rank, note.source) == (10.0 + note.step, 2, "spikes")
        assert note.severity == "warning" and "those of the gradient norm are" in note.message
    return [note.step for note in found]


@pytest.mark.parametrize("value", [0.0, -0.0, -3.0, -math.inf])
def test_enough_of_them_are_noted_once(value: float) -> None:
    """The note comes with the step that completes the evidence, and never again."""
    assert noted([value] * (3 * ENOUGH)) == [ENOUGH - 1]


def test_single_ones_need_not_follow_each_other() -> None:
    """They are counted over the run, whatever lies between them."""
    assert noted([1.0, 0.0] * (2 * ENOUGH)) == [2 * ENOUGH - 1]


@pytest.mark.parametrize("value", [None, math.nan, 1e-300, math.inf, 2.0])
def test_what_is_no_such_loss(value: float | None) -> None:
    """Unseen, undefined and positive losses are no evidence."""
    assert noted([value] * (3 * ENOUGH) + [0.0] * (ENOUGH - 1)) == []


def test_a_loss_that_is_not_positive_is_noted() -> None:
    """Its spikes are not looked for, which is said once; a single zero is nothing to note."""
    for shift, notes in ((0.0, 0), (-1e6, 1)):
        model = nn.Linear(6, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with gradtrace(model, directory=None) as trace:
            for x, y in DataLoader(dataset(), batch_size=8):
                (loss_fn(model(x), y) + shift).backward()
                optimizer.step()
                optimizer.zero_grad()
        assert len([note for note in trace.notes if "not above zero" in note.message]) == notes
