"""Which step a logged value belongs to."""

from __future__ import annotations

import torch

from gradtrace.collect.logged import Logged
from gradtrace.handover.step import LateLog, Step
from gradtrace.measure.reading import Pending, known
from gradtrace.sampling import Sampling


def a_step() -> Step:
    return Step(Sampling().due(0))


def test_values_of_a_step_are_put_into_it() -> None:
    """Numbers as they are, tensors as what will arrive."""
    late: list[LateLog] = []
    step = a_step()
    Logged(late.append).put({"x": 1.5, "y": torch.tensor(2.0)}, step, hold=False)
    assert known(step.logged["x"]) == 1.5 and isinstance(step.logged["y"], Pending)
    assert late == []


def test_values_of_the_step_that_was_handed_over_follow_it() -> None:
    """At once, as nothing else can be their step."""
    late: list[LateLog] = []
    Logged(late.append).put({"x": 1.0}, None, hold=False)
    assert [log.values for log in late] == [{"x": 1.0}]


def test_values_may_be_held_until_it_shows_whose_they_are() -> None:
    """They are the next step's if the user closes one, else the last one's; each once."""
    late: list[LateLog] = []
    logged = Logged(late.append)
    logged.put({"x": 1.0}, None, hold=True)
    logged.put({"y": 2.0}, None, hold=True)
    step = a_step()
    logged.of(step)
    logged.of_last()
    assert step.logged == {"x": 1.0, "y": 2.0} and late == []
    logged.put({"x": 3.0}, None, hold=True)
    logged.of_last()
    logged.of_last()
    later = a_step()
    logged.of(later)
    assert [log.values for log in late] == [{"x": 3.0}] and later.logged == {}
