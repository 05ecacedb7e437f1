"""How far a step moved each parameter, against a float64 difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gradients import noise
from torch import Tensor, nn
from truth import rows_of

from gradtrace import Sampling
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.rows import NORM, ROW, N
from gradtrace.measure.updates import Snapshot


class Weights(nn.Module):
    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(tensors)


def watched(tensors: list[Tensor]) -> tuple[list[Tensor], Parameters]:
    model = Weights(tensors)
    return [p.detach() for p in model.weights], Parameters({"": model}, Sampling())


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e20])
def test_the_difference_is_exact(size: float) -> None:
    """For small and large parameters of every type, however small the step is."""
    torch.manual_seed(0)
    tensors = [
        noise(30, 7),
        noise(200, 300),
        noise(20, 5).double(),
        noise(20, 5, dtype=torch.complex64),
        noise(60, 70).t(),
        noise(9, 9).bfloat16(),
    ]
    weights, parameters = watched(tensors)
    snapshot = Snapshot(parameters, range(len(weights)))
    before = [weight.clone() for weight in weights]
    for weight in weights:
        weight.add_(torch.randn_like(weight) * size)
    rows = rows_of(snapshot.read())
    for position, (old, new) in enumerate(zip(before, weights, strict=True)):
        wide = torch.complex128 if old.is_complex() else torch.float64
        difference = new.to(wide) - old.to(wide)
        # A bfloat16 difference is rounded once more.
        rel = 1e-2 if old.dtype is torch.bfloat16 else 1e-5
        assert rows[position][NORM] == pytest.approx(float(difference.norm()), rel=rel)
        assert rows[position][N] == old.numel() * (2 if old.is_complex() else 1)


def test_only_the_norm_is_measured() -> None:
    """All else of an update is NaN; what did not move has moved by zero."""
    weights, parameters = watched([noise(4), noise(4)])
    snapshot = Snapshot(parameters, [0, 1])
    weights[0].add_(1.0)
    rows = rows_of(snapshot.read())
    assert [rows[0][NORM], rows[1][NORM]] == [pytest.approx(2.0), 0.0]
    assert np.isnan(rows[0][[c for c in range(len(ROW)) if c not in (N, NORM)]]).all()


def test_a_step_into_nan_shows() -> None:
    """A parameter that a step spoiled has no size of update."""
    weights, parameters = watched([noise(4), noise(4)])
    snapshot = Snapshot(parameters, [0, 1])
    weights[0][2] = math.nan
    weights[1][2] = math.inf
    rows = rows_of(snapshot.read())
    assert math.isnan(rows[0][NORM]) and math.isinf(rows[1][NORM])


def test_only_what_was_asked_for_is_copied() -> None:
    """Other parameters cost no memory, and a snapshot is used up by reading it."""
    weights, parameters = watched([noise(3), noise(4), noise(5)])
    snapshot = Snapshot(parameters, [2, 0])
    assert [copy.numel() for copy in snapshot._copies] == [5, 3]
    weights[1].add_(1.0)
    weights[0].add_(2.0)
    assert rows_of(snapshot.read())[0][NORM] == pytest.approx(math.sqrt(3 * 4.0))
    assert snapshot._copies == []
    assert Snapshot(parameters, []).read() == []


def test_sparse_parameters_are_left_out() -> None:
    """They cannot be subtracted in place; their dense neighbours are measured."""
    model = nn.Module()
    model.register_parameter("thin", nn.Parameter(noise(4, 4).to_sparse()))
    model.register_parameter("full", nn.Parameter(noise(4)))
    parameters = Parameters({"": model}, Sampling())
    snapshot = Snapshot(parameters, [0, 1])
    parameters.tensors[1].detach().add_(1.0)
    rows = rows_of(snapshot.read())
    assert list(rows) == [1] and rows[1][NORM] == pytest.approx(2.0)


def test_copies_are_the_snapshots_own() -> None:
    """Neither the parameters nor their gradients are touched by the subtraction."""
    weights, parameters = watched([noise(3, 3)])
    weight = parameters.tensors[0]
    weight.grad = noise(3, 3)
    kept = weights[0].clone(), weight.grad.clone()
    Snapshot(parameters, [0]).read()
    assert torch.equal(weight.detach(), kept[0]) and torch.equal(weight.grad, kept[1])
    assert weight.grad_fn is None
