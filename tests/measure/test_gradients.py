"""Which gradients of the open step are known, and what has to be read again."""

from __future__ import annotations

import pytest
import torch
from gradients import noise
from readings import decoded
from torch import Tensor, nn
from truth import rows_of

from gradtrace import Sampling
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Reading
from gradtrace.measure.rows import NORM


def norms(readings: list[Reading]) -> dict[int, float]:
    """The norms by position, still multiplied by a loss scale."""
    return {position: float(row[NORM]) for position, row in rows_of(readings).items()}


class Loop:
    """A model of two layers whose gradients are written by hand, and a reader of them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
        self.reader = GradientReader(Parameters({"": self.model}, Sampling()))

    def backward(self, *layers: int) -> None:
        """Adds to the gradients of some layers, and tells the reader which."""
        for layer in layers:
            weight = self.weight(layer)
            gradient = noise(*weight.shape)
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        self.reader.stale(layers)

    def weight(self, layer: int) -> nn.Parameter:
        weight: nn.Parameter = self.model[layer].weight  # type: ignore[assignment]
        return weight

    def grad(self, layer: int) -> Tensor:
        grad = self.weight(layer).grad
        assert grad is not None
        return grad

    def norm(self, layer: int) -> float:
        return float(self.grad(layer).double().norm())


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_numbers_are_read_once(loop: Loop) -> None:
    """What is known is not measured again, until a backward writes it or somebody has used it."""
    loop.backward(0, 1)
    readings, present = loop.reader.read([0, 1], full=True)
    assert present == [0, 1]
    assert norms(readings) == pytest.approx({0: loop.norm(0), 1: loop.norm(1)}, rel=1e-6)
    assert loop.reader.is_fresh([0, 1])
    assert loop.reader.read([0, 1], full=True) == ([], [])
    loop.backward(1)
    assert not loop.reader.is_fresh([0, 1]) and loop.reader.is_fresh([0])
    readings, present = loop.reader.read([0, 1], full=True)
    assert present == [1] and norms(readings) == pytest.approx({1: loop.norm(1)}, rel=1e-6)
    loop.reader.gone([0])
    assert loop.reader.read([0, 1], full=True)[1] == [0]


def test_a_missing_gradient_is_never_known(loop: Loop) -> None:
    """It is not among those read, and is looked for again."""
    loop.backward(1)
    assert loop.reader.read([0, 1], full=True)[1] == [1]
    assert not loop.reader.is_fresh([0, 1])
    loop.backward(0)
    assert loop.reader.read([0, 1], full=True)[1] == [0]


def test_scaled_gradients_carry_their_divisor(loop: Loop) -> None:
    """Readings of what is still multiplied by the loss scale are divided, the others are not."""
    scale = torch.tensor(8.0)
    loop.backward(0, 1)
    loop.reader.scaled([1])
    assert loop.reader.is_scaled([0, 1]) and not loop.reader.is_scaled([0])
    readings, present = loop.reader.read([0, 1], full=True, scale=scale)
    assert sorted(present) == [0, 1]
    scales = [None if one.divisor is None else one.divisor.tensor for one in readings]
    divisors = {p: s for s, one in zip(scales, readings, strict=True) for p in norms([one])}
    assert divisors[0] is None and divisors[1] is scale
    counted = loop.reader.histograms([0, 1], scale=scale)
    scales = [None if one.divisor is None else one.divisor.tensor for one in counted]
    found = {int(decoded(one)[0][0]): s for s, one in zip(scales, counted, strict=True)}
    assert found[0] is None and found[1] is scale


def test_unscaling_makes_numbers_stale(loop: Loop) -> None:
    """Divided in place, gradients have to be read again, and have no divisor any more."""
    scale = torch.tensor(8.0)
    loop.backward(0, 1)
    loop.reader.scaled([0, 1])
    loop.reader.read([0, 1], full=True, scale=scale)
    loop.grad(0).div_(8.0)
    loop.reader.unscaled([0])
    assert not loop.reader.is_fresh([0]) and loop.reader.is_fresh([1])
    [reading], present = loop.reader.read([0, 1], full=True, scale=scale)
    assert present == [0] and reading.divisor is None
    assert norms([reading]) == pytest.approx({0: loop.norm(0)}, rel=1e-6)


def test_without_a_scale_nothing_is_divided(loop: Loop) -> None:
    """A scaler that is off leaves gradients as they are, whatever was noted."""
    loop.backward(0)
    loop.reader.scaled([0])
    [reading], _ = loop.reader.read([0], full=True)
    assert reading.divisor is None
    [counted] = loop.reader.histograms([0])
    assert counted.divisor is None


def test_what_comes_after_is_not_multiplied(loop: Loop) -> None:
    """A scale ends with the gradients it was in: a backward more keeps it, a use does not."""
    loop.backward(0, 1)
    loop.reader.scaled([0, 1])
    loop.backward(0)
    assert loop.reader.is_scaled([0])
    loop.reader.gone([0])
    assert not loop.reader.is_scaled([0]) and loop.reader.is_scaled([1])


def test_reading_again_makes_nothing_known(loop: Loop) -> None:
    """What was measured after a change is beside the step's own numbers."""
    loop.backward(0)
    readings, present = loop.reader.read_again([0, 1], full=True)
    assert present == [0] and norms(readings) == pytest.approx({0: loop.norm(0)}, rel=1e-6)
    assert not loop.reader.is_fresh([0])
