"""Each sample's gradient, against autograd one sample at a time; and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradtrace import Sampling, attribute, gradtrace
from gradtrace.demo.charlm import CharLM


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


def conv() -> tuple[nn.Module, Any, Callable[..., Tensor]]:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 36, 10),
    )
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8))  # running statistics that differ from the initial ones
    return model, (torch.randn(11, 1, 8, 8), torch.randint(0, 10, (11,))), F.cross_entropy


def gpt() -> tuple[nn.Module, Any, Callable[..., Tensor]]:
    model = CharLM(30, length=16, width=16, heads=2, depth=2)

    def loss(model: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    return model, torch.randint(0, 30, (11, 17)), loss


def lstm() -> tuple[nn.Module, Any, Callable[..., Tensor]]:
    return Recurrent(), (torch.randn(11, 6, 5), torch.randint(0, 3, (11,))), F.cross_entropy


KINDS = {"conv": conv, "gpt": gpt, "lstm": lstm}


@pytest.mark.parametrize("kind", KINDS)
def test_norms_equal_autograd_one_by_one(kind: str) -> None:
    """Losses and gradient norms of every sample are those of a backward on it alone."""
    torch.manual_seed(0)
    model, batch, loss_fn = KINDS[kind]()
    found = attribute(model, loss_fn, batch, chunk=4)
    reference = copy.deepcopy(model).eval()
    assert len(found.samples) == 11
    for i, sample in enumerate(found.samples):
        one = batch[i : i + 1] if isinstance(batch, Tensor) else [t[i : i + 1] for t in batch]
        reference.zero_grad()
        loss = (
            loss_fn(reference, one)
            if isinstance(batch, Tensor)
            else loss_fn(reference(one[0]), one[1])
        )
        loss.backward()
        squares = [
            p.grad.double().square().sum() for p in reference.parameters() if p.grad is not None
        ]
        norm = float(torch.stack(squares).sum().sqrt())
        assert sample.sample_id == i
        assert sample.loss == pytest.approx(float(loss.detach()), rel=1e-5)
        assert sample.grad_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes(kind: str) -> None:
    """Parameters, buffers, gradients, modes and the random state are bitwise what they were."""
    torch.manual_seed(0)
    model, batch, loss_fn = KINDS[kind]()
    model.train()
    list(model.children())[-1].eval()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    modes = [m.training for m in model.modules()]
    generator = torch.get_rng_state()
    attribute(model, loss_fn, batch)
    assert torch.equal(generator, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    for name, t in model.state_dict().items():
        assert torch.equal(t, state[name])
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert p.grad is not None and torch.equal(p.grad, gradient)


def test_an_operation_without_a_batching_rule_falls_back_to_a_loop() -> None:
    """Control flow on values cannot be batched; the numbers are right all the same."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return y * 2 if float(x.sum()) > 0 else y

    model = Branching()
    x = torch.randn(6, 3)
    found = attribute(model, F.mse_loss, (x, torch.zeros(6, 1)))
    assert found.method == "loop"
    for i, sample in enumerate(found.samples):
        assert sample.loss == pytest.approx(
            float(F.mse_loss(model(x[i : i + 1]), torch.zeros(1, 1)))
        )


def test_the_largest_comes_first_and_bad_values_before_it() -> None:
    """`ranked` orders by norm or loss; NaN is the most suspicious of all."""
    model = nn.Linear(2, 1)
    x = torch.tensor([[1.0, 1.0], [float("nan"), 0.0], [30.0, 9.0], [0.1, 0.1]])
    found = attribute(model, F.mse_loss, (x, torch.zeros(4, 1)), sample_ids=("a", "b", "c", "d"))
    assert [s.sample_id for s in found.ranked()][:2] == ["b", "c"]
    assert found.ranked("loss")[0].sample_id == "b"
    with pytest.raises(ValueError, match="expected 'grad_norm' or 'loss'"):
        found.ranked("size")


def test_a_trace_around_it_sees_nothing(internal_errors: list[Exception]) -> None:
    """Within a traced loop, attribution adds no activation, no loss and no step."""
    model, batch, loss_fn = conv()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradtrace(model, directory=None, sampling=Sampling(activations=1)) as trace:
        for _ in range(3):
            optimizer.zero_grad()
            loss_fn(model(batch[0]), batch[1]).backward()
            attribute(model, loss_fn, batch)
            optimizer.step()
    assert internal_errors == []
    assert [len(s.losses) for s in trace.steps] == [1, 1, 1]
    activations = trace.steps[-1].activations
    assert activations is not None
    # Seen once, by the loop's own forward.
    assert activations["1", "nonfinite"] == 0


def test_wrong_arguments_are_told() -> None:
    """What was got, what was expected."""
    model = nn.Linear(2, 1)
    good = (torch.zeros(4, 2), torch.zeros(4, 1))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        attribute("model", F.mse_loss, good)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a callable"):
        attribute(model, None, good)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the class MSELoss; .*make an instance, MSELoss\(\)"):
        attribute(model, nn.MSELoss, good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one row a sample"):
        attribute(model, F.mse_loss, (torch.zeros(4, 2), torch.zeros(3, 1)))
    with pytest.raises(ValueError, match="2 entries for a batch of 4 samples"):
        attribute(model, F.mse_loss, good, sample_ids=(1, 2))
    with pytest.raises(ValueError, match="at least 1"):
        attribute(model, F.mse_loss, good, chunk=0)
    with pytest.raises(ValueError, match=r"pair \(inputs, target\)"):
        attribute(model, F.mse_loss, (good[0], good[0], good[0]))


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda x, y: float(F.mse_loss(x, y)), TypeError, r"a float; expected.*without \.item"),
        (lambda x, y: F.mse_loss(x, y).item(), TypeError, r"a float; expected.*without \.item"),
        (lambda x, y: None, TypeError, "a NoneType; expected a tensor"),
        (
            nn.MSELoss(reduction="none"),
            ValueError,
            r"a tensor of shape \(1, 3\); expected one value.*reduction='mean'",
        ),
    ],
)
def test_a_loss_that_is_no_single_tensor_is_told(
    loss_fn: Callable[..., Any], error: type[Exception], message: str
) -> None:
    """What the function returned, and how to return what is needed."""
    with pytest.raises(error, match=f"loss_fn returned {message}"):
        attribute(nn.Linear(2, 3), loss_fn, (torch.zeros(4, 2), torch.zeros(4, 3)))


def test_a_frozen_model_is_told() -> None:
    """Without a gradient there is nothing to compare."""
    model = nn.Linear(2, 1).requires_grad_(False)
    with pytest.raises(ValueError, match=r"no parameter that requires a gradient.*requires_grad_"):
        attribute(model, F.mse_loss, (torch.zeros(4, 2), torch.zeros(4, 1)))
