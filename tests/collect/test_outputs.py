"""What is summed up one tensor at a time becomes tables of the step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradtrace.collect.outputs import Outputs
from gradtrace.handover.step import Step
from gradtrace.measure.parameters import Parameters
from gradtrace.sampling import Due, Sampling

EVERYTHING = Sampling(gradients=1, activations=1, updates=1).due(0)


@pytest.fixture
def outputs() -> Outputs:
    return Outputs(Parameters({"": nn.Linear(3, 2)}, Sampling()))


def tables(outputs: Outputs, due: Due = EVERYTHING) -> list[str]:
    step = Step(due)
    outputs.put_into(step)
    return [name for name, _ in step.tables]


def fill(outputs: Outputs) -> None:
    outputs.activations.add(0, torch.ones(3))
    outputs.output_gradients.add(0, torch.ones(3))
    outputs.loose.add(0, torch.ones(3))


def test_what_was_added_becomes_tables(outputs: Outputs) -> None:
    """Each of its own kind; what nothing was added to is none."""
    assert tables(outputs) == []
    outputs.output_gradients.add(0, torch.ones(3))
    assert tables(outputs) == ["output_gradients"]
    fill(outputs)
    assert tables(outputs) == ["activations", "output_gradients", "gradients"]
    outputs.start()
    assert tables(outputs) == []


def test_a_step_gets_what_it_asks_for(outputs: Outputs) -> None:
    """Activations of a step that measures none are left out."""
    fill(outputs)
    assert tables(outputs, EVERYTHING._replace(activations=False)) == ["gradients"]


def test_a_step_that_was_not_wholly_seen_has_no_outputs(outputs: Outputs) -> None:
    """Its gradients are not concerned, nor is the next step."""
    fill(outputs)
    outputs.spoil()
    assert tables(outputs) == ["gradients"]
    outputs.start()
    fill(outputs)
    assert len(tables(outputs)) == 3


def test_module_names_are_a_tuple_that_is_kept(outputs: Outputs) -> None:
    """While there are no new ones it is the same object, for each step holds it."""
    outputs.module_names += ["a", "b"]
    first = outputs.modules()
    assert first == ("a", "b") and outputs.modules() is first
    outputs.module_names.append("c")
    assert outputs.modules() == ("a", "b", "c")
