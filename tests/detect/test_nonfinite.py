"""NaN and Inf: which layer, in which order, how many, since when."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from gradtrace import NonFinite, Trace, gradtrace
from gradtrace.detect.nonfinite import NonFiniteDetector
from gradtrace.records import MOMENT_COLUMNS, LayerTable, StepRecord


class Reversed(nn.Module):
    """Runs its layers in another order than it lists them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)
        self.middle = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.middle(self.first(x)))
        return y


def events(trace: Trace) -> list[NonFinite]:
    return [event for event in trace.events if isinstance(event, NonFinite)]


def record(step: int, bad: dict[str, int], *, norm: float = 1.0, loss: float = 1.0) -> StepRecord:
    names = ("a.weight", "b.weight", "c.weight")
    values = np.zeros((3, len(MOMENT_COLUMNS)))
    for name, count in bad.items():
        values[names.index(name), -1] = count
    table = LayerTable(names, values, MOMENT_COLUMNS)
    return StepRecord(step, float(step), loss=loss, grad_norm=norm, gradients=table)


def test_backward_meets_the_culprit_first() -> None:
    """A layer whose backward makes NaN is the first bad one in backward order, and is named."""
    model = Reversed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        y = model.last(model.middle(model.first(torch.randn(2, 4))) * torch.tensor(math.nan))
        y.sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    [event] = events(trace)
    # The input of `last` is NaN, so its weight's gradient is; its bias's is not.
    assert event.first_backward == "last.weight"
    assert event.first_forward is not None and event.first_forward.startswith("first.")
    assert "last.bias" not in event.layers
    assert event.count == sum(event.layers.values()) == 16 * 3 + 4 * 2
    assert event.step == 0 and event.severity == "error"


def test_forward_order_is_the_order_of_execution() -> None:
    """Layers are ranked by when they ran, not by where the model lists them."""
    detector = NonFiniteDetector({"c": 0, "a": 1, "b": 2})
    [event] = detector.update(record(0, {"a.weight": 2, "b.weight": 1, "c.weight": 5}))
    assert event.first_forward == "c.weight"
    assert event.first_backward == "b.weight"
    assert list(event.layers.items()) == [("c.weight", 5), ("a.weight", 2), ("b.weight", 1)]
    assert event.count == 8


def test_without_a_known_order_the_models_own_counts() -> None:
    """A layer that never ran in sight falls back to the order of the parameters."""
    [event] = NonFiniteDetector({"c": 0}).update(record(0, {"a.weight": 1, "c.weight": 1}))
    assert (event.first_forward, event.first_backward) == ("a.weight", "c.weight")


def test_an_overflowed_norm_is_told_apart() -> None:
    """Finite gradients whose norm is infinite are an overflow, not a bad layer."""
    [event] = NonFiniteDetector({}).update(record(0, {}, norm=math.inf))
    assert event.overflow and event.count == 0 and event.first_backward is None
    assert "overflowed although every gradient is finite" in event.message


def test_a_bad_loss_alone_is_an_event() -> None:
    """A NaN loss is told even when no gradient was measured."""
    [event] = NonFiniteDetector({}).update(StepRecord(3, 0.0, loss=math.nan))
    assert event.loss is not None and math.isnan(event.loss) and "the loss is nan" in event.message


def test_healthy_steps_have_no_event() -> None:
    """Nothing is said of finite numbers, nor of what was not measured."""
    detector = NonFiniteDetector({})
    assert detector.update(record(0, {})) == []
    assert detector.update(StepRecord(1, 0.0)) == []


def test_a_long_streak_is_told_ever_less_often() -> None:
    """Streaks of 1 to 10, 16, 32, ... are told; a good step begins a new streak."""
    bad = NonFiniteDetector({})
    steps = range(100)
    told = [step + 1 for step in steps if bad.update(record(step, {"a.weight": 1}))]
    assert told == [*range(1, 11), 16, 32, 64]
    assert bad.update(record(100, {})) == []
    [event] = bad.update(record(101, {"a.weight": 1}))
    assert event.streak == 1
