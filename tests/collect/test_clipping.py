"""What clips gradients, as it happens: which call changed which, and what was odd about it."""

from __future__ import annotations

import math

import pytest
import torch
from driven import EVERYTHING, Driven, values
from torch import nn

from gradtrace.collect.clipping import Clipping
from gradtrace.collect.ledger import Ledger
from gradtrace.handover.step import ClipCall, Part, Step
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.sampling import Sampling


class Watched:
    """A clipping with gradients on two layers, written a moment ago."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.parameters = Parameters({"": self.model}, Sampling())
        self.reader = GradientReader(self.parameters)
        self.notes: list[str] = []
        self.ledger = Ledger(self.parameters)
        self.clipping = Clipping(
            self.parameters, self.reader, self.ledger, lambda source, text: self.notes.append(text)
        )
        self.step = Step(EVERYTHING.due(0))
        self.given = list(self.model.parameters())
        self.backward()

    def backward(self) -> None:
        self.ledger.settle()
        torch.stack([p.square().sum() for p in self.given]).sum().backward()
        written = self.ledger.written(Part(0, None))
        self.reader.stale(written)
        self.clipping.unclipped(written)

    def remarks(self, *positions: int, first: bool = False) -> set[str]:
        if positions:
            self.clipping.begins(self.step, positions, first=first)
        else:
            self.clipping.nothing(self.step)
        return self.step.remarks


def test_an_ordinary_call_is_not_remarkable() -> None:
    """Gradients of this step, clipped once."""
    assert Watched().remarks(0, 1, 2, 3) == set()


def test_a_call_without_gradients() -> None:
    """Nothing given, as by an iterator that was used up, or nothing that has a gradient."""
    assert Watched().remarks() == {"no gradients"}
    watched = Watched()
    watched.given[0].grad = watched.given[1].grad = None
    assert watched.remarks(0, 1) == {"no gradients"}
    watched.step.remarks.clear()
    assert watched.remarks(0, 1, 2) == set()


def test_a_call_after_the_step() -> None:
    """Gradients that an optimizer has used already, but for the run's first step."""
    watched = Watched()
    watched.ledger.use([0, 1])
    assert watched.remarks(0, 1, first=True) == set()
    assert watched.remarks(1, 2) == set()
    assert watched.remarks(0, 1) == {"after the step"}
    watched.step.remarks.clear()
    watched.backward()
    assert watched.remarks(0, 1) == set()


def test_a_call_on_scaled_gradients() -> None:
    """Those that are still multiplied by the loss scale."""
    watched = Watched()
    watched.reader.scaled([3])
    assert watched.remarks(0, 1) == set()
    assert watched.remarks(2, 3) == {"still scaled"}


def test_a_second_call_on_the_same_gradients() -> None:
    """Other layers' calls, and changes nobody announced, are no first call."""
    watched = Watched()
    watched.reader.read(range(4), full=True)
    assert watched.given[2].grad is not None
    watched.given[2].grad.mul_(0.5)
    watched.clipping.begins(watched.step, range(4), first=False)
    watched.clipping.after(watched.step, ClipCall("norm", (0, 1)))
    assert watched.remarks(2, 3) == set()
    assert watched.remarks(1, 2) == {"twice"}


def test_a_change_that_nobody_announced_is_a_call() -> None:
    """With numbers from before it is one of its own kind, with the gradients after it."""
    watched = Watched()
    watched.reader.read(range(4), full=True)
    for parameter in watched.given[:2]:
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)
    watched.clipping.begins(watched.step, range(4), first=False)
    [call] = watched.step.clips
    assert (call.kind, call.positions, call.inferred) == ("custom", (0, 1, 2, 3), True)
    assert call.after and watched.clipping.changes_unannounced and watched.notes == []
    watched.clipping.begins(watched.step, range(4), first=False)
    assert len(watched.step.clips) == 1  # the same change is no second one


def test_without_numbers_from_before_it_is_noted() -> None:
    """What the gradients were is gone; later steps will be read in time."""
    watched = Watched()
    assert watched.given[0].grad is not None
    watched.given[0].grad.mul_(0.5)
    watched.clipping.begins(watched.step, range(4), first=False)
    assert watched.step.unread and not watched.step.clips
    assert watched.clipping.changes_unannounced
    [note] = watched.notes
    assert "they are read right after each backward" in note


def test_what_a_call_changed_is_announced() -> None:
    """After a clipping call no change is news, until the next backward."""
    watched = Watched()
    assert watched.given[0].grad is not None
    watched.given[0].grad.mul_(0.5)
    watched.clipping.after(watched.step, ClipCall("norm", (0,)))
    watched.clipping.begins(watched.step, range(4), first=False)
    assert not watched.clipping.changes_unannounced
    watched.backward()
    watched.given[0].grad.mul_(0.5)
    watched.clipping.begins(watched.step, range(4), first=False)
    assert watched.clipping.changes_unannounced


@pytest.mark.parametrize("limit", [0.05, 1e9])
def test_value_clipping_has_its_angle(limit: float) -> None:
    """The cosine of the gradient before and after, once the loop is known to clip values."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    driven = Driven(model)
    truth = math.nan
    for _ in range(2):
        model.zero_grad()
        driven.backward(model(torch.ones(2, 4)).square().sum())
        before = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        driven.clip_value(limit)
        after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        truth = float(torch.nn.functional.cosine_similarity(before, after, dim=0))
        driven.step(optimizer)
    first, second = (record.clip for record in driven.records())
    assert first is not None and second is not None
    assert math.isnan(first.cosine)  # what comes was not known
    assert second.cosine == pytest.approx(truth, rel=1e-5)
    assert second.norm_after == pytest.approx(float((values(after) ** 2).sum() ** 0.5), rel=1e-5)
    assert second.clipped == (limit < 1)
