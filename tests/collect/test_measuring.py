"""What an open step measures, when, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driven import EVERYTHING
from torch import nn

from gradtrace.collect.measuring import MOST_WAITING, Measuring
from gradtrace.handover.step import Step
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.sampling import Sampling


class Lane:
    waiting_bytes = 0


class Watched:
    """A model whose gradients were written a moment ago, and what measures it."""

    def __init__(self, guarded: Any = lambda source, function: function) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.parameters = Parameters({"": self.model}, Sampling())
        self.reader = GradientReader(self.parameters)
        self.lane = Lane()
        self.notes: list[str] = []
        self.measuring = Measuring(
            self.parameters,
            self.reader,
            self.lane,
            every=7,
            note=lambda source, text: self.notes.append(f"{source}: {text}"),
            guarded=guarded,
        )
        torch.stack([p.square().sum() for p in self.model.parameters()]).sum().backward()

    def step(self, sampling: Sampling = EVERYTHING) -> Step:
        return Step(sampling.due(0))


def tables(step: Step) -> list[str]:
    return [table for table, _ in step.tables]


def test_gradients_are_read_once() -> None:
    """Those that were read before are left out, and their histograms too."""
    watched = Watched()
    step = watched.step()
    watched.measuring.gradients(step, (0, 1), None)
    watched.measuring.gradients(step, (0, 1, 2, 3), None)
    watched.measuring.gradients(step, (0, 1, 2, 3), None)
    assert tables(step) == ["gradients", "gradients"]
    assert [positions for positions, _ in step.histograms] == [{0, 1}, {2, 3}]


def test_histograms_are_taken_where_they_are_due() -> None:
    """Elsewhere gradients alone are read."""
    watched = Watched()
    step = watched.step(Sampling())
    watched.measuring.gradients(step, range(4), None)
    assert tables(step) == ["gradients"] and step.histograms == [] and step.counting is None


def test_a_full_lane_goes_without_histograms() -> None:
    """All of a step's or none: what was decided for its beginning counts for its end."""
    watched = Watched()
    watched.lane.waiting_bytes = MOST_WAITING
    step = watched.step()
    watched.measuring.gradients(step, (0, 1), None)
    watched.lane.waiting_bytes = 0
    later = watched.step()
    watched.measuring.gradients(later, (2, 3), step)
    assert (step.histograms, later.histograms) == ([], [])
    assert (step.counting, later.counting) == (False, False)
    [note] = watched.notes
    assert note.startswith("histograms: ") and "Sampling(histograms=7)" in note
    fresh = watched.step()
    watched.reader.gone(range(4))
    watched.measuring.gradients(fresh, range(4), None)
    assert fresh.histograms and len(watched.notes) == 1


def test_histograms_that_fail_cost_no_gradients() -> None:
    """Their errors are held back apart."""
    held_back: list[str] = []

    def guarded(source: str, function: Any) -> Any:
        def inner(*args: Any) -> None:
            try:
                function(*args)
            except ValueError:
                held_back.append(source)

        return inner

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("on purpose")

    watched = Watched(guarded)
    watched.reader.histograms = broken  # type: ignore[method-assign]
    step = watched.step()
    watched.measuring.gradients(step, range(4), None)
    assert held_back == ["the histograms"] and tables(step) == ["gradients"]


def test_updates_belong_to_their_own_optimizer() -> None:
    """Each key's weights are copied before and compared after; a key that is unknown is nothing."""
    watched = Watched()
    step = watched.step()
    watched.measuring.before_update(step, 1, (0, 1))
    watched.measuring.before_update(step, 2, (2, 3))
    watched.measuring.after_update(step, 2)
    watched.measuring.after_update(step, 2)
    watched.measuring.after_update(step, 3)
    watched.measuring.after_update(step, 1)
    assert tables(step) == ["weights", "weights", "updates", "updates"]


def test_copies_that_nobody_asks_for_are_let_go() -> None:
    """At the end of a trace no copy of the weights is left."""
    watched = Watched()
    step = watched.step()
    watched.measuring.before_update(step, 1, range(4))
    watched.measuring.forget()
    watched.measuring.after_update(step, 1)
    assert tables(step) == ["weights"] and watched.measuring._snapshots == {}


@pytest.mark.parametrize("sampling", [EVERYTHING, Sampling()])
def test_gradients_inside_the_backward_are_added_up(sampling: Sampling) -> None:
    """Those that exist go into the accumulator one by one."""
    watched = Watched()
    step = watched.step(sampling)
    weight: Any = watched.model[0]
    weight.weight.grad = None
    into = watched.parameters.accumulator()
    watched.measuring.loose(step, (0, 1, 2), into, None)
    for cell in (reading := into.reading()).cells():
        assert cell.tensor is not None
        cell.arrived(cell.tensor.double().numpy())
    positions, rows = reading.rows()
    assert positions.tolist() == [1, 2] and len(rows) == 2
    assert bool(step.histograms) == (sampling is EVERYTHING)
