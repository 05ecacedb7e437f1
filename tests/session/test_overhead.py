"""What a trace costs the training thread, as it is told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradtrace import gradtrace
from gradtrace.guard import Guard
from gradtrace.records import StepRecord
from gradtrace.session.overhead import Overhead
from gradtrace.session.recent import Recent


def told(seconds: float, times: list[float]) -> Overhead:
    guard, recent = Guard(lambda source, text: None), Recent()
    guard.seconds = seconds
    recent.add([StepRecord(step, time) for step, time in enumerate(times)])
    return Overhead.of(guard, recent)


def test_a_share_of_the_time_between_steps() -> None:
    """Of 4 s over 5 steps, 0.5 s spent are 0.1 s a step and a tenth of the time."""
    overhead = told(0.5, [100.0, 101.0, 102.0, 103.5, 104.0])
    assert (overhead.seconds, overhead.per_step) == (0.5, 0.1)
    assert overhead.ratio == pytest.approx(0.1)


def test_nothing_to_relate_it_to() -> None:
    """Without steps there is no cost a step, and with one, or none apart, no share."""
    none, one, same = told(0.5, []), told(0.5, [100.0]), told(0.5, [100.0, 100.0])
    assert none.seconds == 0.5 and math.isnan(none.per_step) and math.isnan(none.ratio)
    assert one.per_step == 0.5 and math.isnan(one.ratio)
    assert same.per_step == 0.25 and math.isnan(same.ratio)


def test_the_steps_of_a_run_add_up_to_it() -> None:
    """What records say was spent for each of them is what the trace says in all, less its ends."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    spent = sum(record.overhead for record in trace.steps)
    assert all(record.overhead > 0 for record in trace.steps)
    assert 0 < spent <= trace.overhead.seconds
    assert trace.overhead.per_step == pytest.approx(trace.overhead.seconds / 20)
