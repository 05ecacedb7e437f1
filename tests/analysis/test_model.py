"""A model looked at without changing it, and how a loss function is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradtrace.analysis.model import check_measurable, loss_of, read_only, takes_model


class Counting(nn.Module):
    """Writes into its buffers in eval mode too: one in place, one anew; two share a third."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))
        self.register_buffer("nothing", None)
        self.linear.register_buffer("calls", self.calls)
        self.calls: Tensor
        self.last: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        assert self.linear.calls is self.calls
        y: Tensor = self.norm(self.dropout(self.linear(x)))
        self.last = y.detach().mean(0)
        return y


def test_nothing_of_the_model_changes() -> None:
    """Each module's mode, each buffer, the very same tensors, and the random state."""
    torch.manual_seed(0)
    model = Counting()
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    buffers = dict(model.named_buffers(remove_duplicate=False))
    values = {name: buffer.clone() for name, buffer in buffers.items()}
    generator = torch.get_rng_state()
    with read_only(model):
        assert not any(module.training for module in model.modules())
        first, again = model(torch.ones(4, 3)), model(torch.ones(4, 3))
        assert torch.equal(first, again)  # no dropout
        torch.rand(5)
        assert float(model.calls) == 2
    assert modes == [module.training for module in model.modules()]
    for name, buffer in model.named_buffers(remove_duplicate=False):
        assert buffer is buffers[name] and torch.equal(buffer, values[name]), name
    assert torch.equal(torch.get_rng_state(), generator)


def test_everything_comes_back_after_an_error() -> None:
    """What fails inside is raised, and the model is what it was."""
    model = Counting()
    calls = model.calls

    def fail() -> None:
        with read_only(model):
            model(torch.ones(4, 3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.training and model.dropout.training
    assert model.calls is calls and float(calls) == 0


def by_model(model: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize("name", ["model", "module", "net", "network"])
def test_a_loss_that_takes_the_model_is_given_it(name: str) -> None:
    """By the name of its first parameter; the batch may then be anything."""
    space: dict[str, Any] = {}
    exec(f"def loss({name}, batch): return {name}(batch['x']).sum()", space)
    assert takes_model(space["loss"])
    batch = {"x": torch.ones(2, 3)}
    assert float(loss_of(space["loss"], lambda x: 2 * x, batch)) == 12.0


@pytest.mark.parametrize(
    "loss_fn", [F.mse_loss, nn.MSELoss(), lambda y, target: (y - target).sum()]
)
def test_a_criterion_is_given_outputs_and_target(loss_fn: Callable[..., Tensor]) -> None:
    """Functions and modules alike: `loss_fn(model(inputs), target)`."""
    assert not takes_model(loss_fn)
    found = loss_of(loss_fn, lambda x: x + 1, (torch.zeros(1, 1), torch.zeros(1, 1)))
    assert float(found) == 1.0 and found.shape == ()


def test_a_builtin_without_a_signature_is_a_criterion() -> None:
    """What `inspect` knows nothing of is called with outputs and target."""
    assert not takes_model(torch.dot)
    assert float(loss_of(torch.dot, lambda x: x, (torch.ones(3), torch.ones(3)))) == 3.0


def test_a_loss_of_one_value_in_any_shape_will_do() -> None:
    """[1] or [1, 1] is taken as the one value it holds."""
    found = loss_of(by_model, lambda x: x, torch.ones(1, 2))
    assert found.shape == ()
    assert loss_of(lambda y, t: y.reshape(1, 1), lambda x: x.sum(), (torch.ones(2), 0)).shape == ()


@pytest.mark.parametrize(
    ("batch", "loss_fn", "error", "message"),
    [
        (torch.ones(3, 2), F.mse_loss, ValueError, r"a Tensor; a criterion needs a pair"),
        ((1, 2, 3), F.mse_loss, ValueError, r"a tuple; a criterion needs a pair"),
        ((torch.ones(2), 0), lambda y, t: 0.5, TypeError, "a float; expected a tensor"),
        ((torch.ones(2), 0), lambda y, t: y, ValueError, r"shape \(2,\); expected one value"),
    ],
)
def test_what_is_no_pair_or_no_loss_is_told(
    batch: Any, loss_fn: Callable[..., Any], error: type[Exception], message: str
) -> None:
    """What was got, what was expected, what to do."""
    with pytest.raises(error, match=message):
        loss_of(loss_fn, lambda x: x, batch)


def test_models_and_losses_that_cannot_be_measured_are_told() -> None:
    """No module, a class for an instance, nothing to call, no gradient."""
    model = nn.Linear(2, 1)
    check_measurable(model, F.mse_loss)
    with pytest.raises(TypeError, match=r"model is a str; expected a torch\.nn\.Module"):
        check_measurable("model", F.mse_loss)
    with pytest.raises(TypeError, match=r"the class MSELoss; .*make an instance, MSELoss\(\)"):
        check_measurable(model, nn.MSELoss)
    with pytest.raises(TypeError, match="loss_fn is a int; expected a callable"):
        check_measurable(model, 3)
    with pytest.raises(ValueError, match=r"no parameter that requires a gradient.*requires_grad_"):
        check_measurable(model.requires_grad_(False), F.mse_loss)
