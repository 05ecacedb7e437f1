"""What a loop does becomes steps: against the loop's own account, and against plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from driven import Driven
from random_loops import Shape, run
from torch import Tensor, nn

from gradtrace.handover.step import Handed, LateLog, Step
from gradtrace.measure.reading import Number
from gradtrace.sampling import Sampling

SHAPES = {
    "one optimizer": Shape(),
    "one optimizer, ragged end": Shape(ragged=True),
    "a list beside the loader": Shape(plain=True),
    "two optimizers on the same losses": Shape(optimizers=2),
    "two optimizers in turn": Shape(optimizers=2, in_turn=True),
    "two in turn, ragged end": Shape(optimizers=2, in_turn=True, ragged=True),
    "two in turn, one with a closure": Shape(optimizers=2, in_turn=True, closure=True),
    "nobody's layer": Shape(unowned=True),
    "nobody's layer, two in turn": Shape(optimizers=2, in_turn=True, unowned=True),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES)
def test_each_loss_has_its_batches(shape: str, seed: int) -> None:
    """In loops of any shape a micro-batch has the loss and the batches that the loop gave it."""
    diary, trace = run(SHAPES[shape], seed)
    assert len(trace.steps) == len(diary.steps)
    for record, written in zip(trace.steps, diary.steps, strict=True):
        losses = [loss for loss, _ in written.parts]
        assert [part.loss for part in record.parts] == pytest.approx(losses, rel=1e-6)
        assert [part.batches for part in record.parts] == [batches for _, batches in written.parts]
        assert list(record.batches) == written.batches
        assert list(record.losses) == [part.loss for part in record.parts]
        assert record.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def two() -> tuple[nn.ModuleList, list[torch.optim.SGD]]:
    """A model of two halves, an optimizer for each."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    return model, [torch.optim.SGD(half.parameters(), lr=0.1) for half in model]


def loss_of(module: nn.Module, size: float = 1.0) -> Tensor:
    return torch.stack([p.square().sum() for p in module.parameters()]).sum() * size


def logged(items: list[Handed]) -> list[dict[str, Number]]:
    found = []
    for item in items:
        assert isinstance(item, (Step, LateLog))
        found.append(dict(item.values if isinstance(item, LateLog) else item.logged))
    return found


def test_a_log_belongs_to_the_step_that_is_open_or_has_just_ended() -> None:
    """Before, within and after a step, and late when the step has been handed over already."""
    model, _ = two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driven = Driven(model)
    log = driven.collector.log
    log({"before the first": 0.0})
    driven.backward(loss_of(model))
    log({"within": 1.0})
    driven.step(optimizer)
    log({"after": 2.0})
    driven.batch(1)
    log({"with its batch": 3.0})
    driven.backward(loss_of(model))
    driven.step(optimizer)
    assert logged(driven.taken()) == [
        {"before the first": 0.0, "within": 1.0},
        {"after": 2.0},
        {"with its batch": 3.0},
    ]


def test_a_log_between_two_optimizers_is_their_rounds() -> None:
    """While a round may go on, what is logged is its own."""
    model, (first, second) = two()
    driven = Driven(model)
    for _ in range(2):
        driven.backward(loss_of(model[0]))
        driven.step(first)
        driven.collector.log({"between": 1.0})
        driven.backward(loss_of(model[1]))
        driven.step(second)
    assert logged(driven.taken()) == [{"between": 1.0}] * 2


def test_what_reaches_no_watched_parameter_is_somebody_elses() -> None:
    """Another model's backward, clip and optimizer make no step and are counted apart."""
    model, _ = two()
    other = nn.Linear(3, 3)
    driven = Driven(model)
    driven.backward(loss_of(other))
    driven.clip_norm(0.1, list(other.parameters()))
    driven.step(torch.optim.SGD(other.parameters(), lr=0.1))
    driven.collector.mark()
    assert driven.taken() == []
    assert (driven.collector.backwards, driven.collector.others) == (0, 1)


def test_a_step_by_hand() -> None:
    """Gradients are read, updates are measured, and nothing happens when nothing happened."""
    model, _ = two()
    driven = Driven(model)
    driven.collector.mark()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        model.zero_grad()
        driven.backward(loss_of(model))
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.1 * parameter.grad)
        driven.collector.mark()
        driven.collector.mark()
    records = driven.records()
    assert [record.step for record in records] == [0, 1, 2]
    for k, record in enumerate(records):
        assert record.gradients is not None and record.updates is not None
        for name, start in before.items():
            size = float(start.norm()) * 0.8**k
            assert record.gradients[name, "norm"] == pytest.approx(2 * size, rel=1e-5)
            assert record.updates[name, "norm"] == pytest.approx(0.2 * size, rel=1e-4)


def test_a_log_beside_steps_by_hand() -> None:
    """What is logged after a step is its own, unless nothing else happens before the next."""
    model, _ = two()
    driven = Driven(model)
    log, mark = driven.collector.log, driven.collector.mark
    for k in range(3):
        log({"alone": float(k)})
        mark()
    driven.batch(1)
    mark()
    log({"after": 3.0})
    driven.backward(loss_of(model))
    log({"within": 4.0})
    mark()
    log({"last": 5.0})
    driven.collector.finish()
    assert logged(driven.taken()) == [
        *({"alone": 0.0}, {"alone": 1.0}, {"alone": 2.0}, {}),
        *({"after": 3.0}, {"within": 4.0}, {"last": 5.0}),
    ]


def test_a_round_that_was_begun_is_recorded_at_the_end() -> None:
    """What waited for another optimizer is handed over when the trace ends; what follows is not."""
    model, (first, _) = two()
    driven = Driven(model)
    driven.backward(loss_of(model[0]))
    driven.step(first)
    driven.backward(loss_of(model[1]))
    assert driven.taken() == []
    driven.collector.finish()
    [record] = driven.records()
    assert len(record.parts) == 1


def test_an_optimizer_inside_the_backward() -> None:
    """Its step ends with the backward that it ran in, and has the gradients it used."""
    model = nn.Linear(3, 3)
    nn.init.zeros_(model.bias)  # which nobody moves
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    driven = Driven(model)
    collector = driven.collector

    def move(parameter: Tensor) -> None:
        collector.before_step(optimizer, closure=False, in_backward=True)
        optimizer.step()
        collector.after_step(optimizer, closure=False, in_backward=True)
        parameter.grad = None

    model.weight.register_post_accumulate_grad_hook(move)
    norms = []
    for _ in range(3):
        norms.append(2 * float(model.weight.detach().norm()))
        driven.backward(loss_of(model))
    records = driven.records()
    assert [len(record.parts) for record in records] == [1] * 3
    assert [record.grad_norm for record in records] == pytest.approx(norms, rel=1e-5)


def test_a_step_that_the_scaler_keeps_back() -> None:
    """It is a step with its loss and scale, and is told as skipped."""
    model, _ = two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driven = Driven(model)
    scale = torch.tensor(4.0)
    for skipped in (True, False):
        model.zero_grad()
        driven.backward(loss_of(model), scale)
        assert driven.collector.before_scaler_step(optimizer, scale.clone())
        if not skipped:
            driven.step(optimizer)
        driven.collector.after_scaler_step(optimizer, skipped=skipped)
        scale = scale / 2
    records = driven.records()
    assert [record.skipped for record in records] == [True, False]
    assert [record.scale for record in records] == [4.0, 2.0]
    assert [record.lr for record in records] == [(0.1,), (0.1,)]


def test_unscaled_gradients_are_divided_once() -> None:
    """After `unscale_` they are what they are, and a scale of the step no longer divides them."""
    model, _ = two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    driven = Driven(model)
    truth = math.sqrt(sum(4 * float(p.detach().square().sum()) for p in model.parameters()))
    for _ in range(2):
        model.zero_grad()
        driven.backward(loss_of(model), torch.tensor(64.0))
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad /= 64.0
        driven.collector.unscaled(optimizer, torch.tensor(64.0))
        driven.clip_norm(1e6)
        driven.step(optimizer)
    for record in driven.records():
        assert record.grad_norm == pytest.approx(truth, rel=1e-5)
        assert record.remarks == () and record.clip is not None
        assert record.clip.norm_before == pytest.approx(truth, rel=1e-5)


def test_a_learning_rate_that_is_a_tensor_is_of_its_step() -> None:
    """A scheduler that changes the tensor in place later does not change the record."""
    model, _ = two()
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, foreach=False)
    driven = Driven(model)
    for _ in range(2):
        driven.backward(loss_of(model))
        driven.step(optimizer)
        rate *= 0.5
    assert [record.lr for record in driven.records()] == [(0.5,), (0.25,)]


SPARSE = Sampling(gradients=3, activations=3, updates=3, histograms=3, first=0)


@pytest.mark.parametrize("unknown", [False, True])
def test_both_halves_of_a_round_measure_the_same(unknown: bool) -> None:
    """Two optimizers in turn: what is due is measured in both pieces of its step, or in none."""
    model, optimizers = two()
    if unknown:  # a layer that no optimizer holds: a round ends when the next one begins
        model.append(nn.Linear(3, 3))
    driven = Driven(model, SPARSE)
    driven.collector.outputs.module_names += ["first", "second"]
    truth = []
    for _ in range(8):
        model.zero_grad()
        norms = []
        for at, (half, optimizer) in enumerate(zip(model, optimizers, strict=False)):
            due: bool = driven.collector.open.due.activations
            if due:  # as the module tap does, which is armed by what is due
                driven.collector.outputs.activations.add(at, torch.ones(3))
            driven.backward(loss_of(half, 100.0))
            norms += [float(p.grad.norm()) for p in half.parameters() if p.grad is not None]
            driven.clip_norm(0.5, list(half.parameters()))
            driven.step(optimizer)
        truth.append(math.hypot(*norms))
    driven.collector.finish()
    records = driven.records()
    assert len(records) == 8
    for record, norm in zip(records, truth, strict=True):
        tables = (record.activations, record.weights, record.updates, record.gradients)
        if record.step % 3:
            assert tables == (None,) * 4 and record.histograms is None, record.step
            assert record.grad_norm is None
        else:
            assert record.activations is not None and len(record.activations.names) == 2
            assert record.grad_norm == pytest.approx(norm, rel=1e-5), record.step
            assert all(table is not None for table in tables)
            assert record.histograms is not None and len(record.histograms.names) == 4


@pytest.mark.parametrize("whole", [True, False])
def test_a_parameter_that_is_replaced_takes_its_gradient_along(whole: bool) -> None:
    """Between backward and step: the step has used what is left, and its rows are those."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    driven = Driven(model)
    driven.batch(7)
    driven.backward(loss_of(model))
    for name in ("weight", "bias") if whole else ("weight",):
        setattr(model, name, nn.Parameter(torch.zeros_like(getattr(model, name))))
    driven.step(torch.optim.SGD(model.parameters(), lr=0.1))
    [record] = driven.records()
    told = [[batch.sample_ids for batch in one.batches] for one in record.discarded]
    assert (len(record.losses), told) == ((0, [[(7,)]]) if whole else (1, []))
    assert record.gradients is None if whole else record.gradients is not None
    if record.gradients is not None:
        assert math.isnan(record.gradients["weight", "norm"])
        assert record.gradients["bias", "norm"] > 0


def test_what_ends_a_step_may_be_said() -> None:
    """With `step_after` the other optimizer's steps are parts of that one's."""
    model, (critic, maker) = two()
    driven = Driven(model, step_after=maker)
    for _ in range(3):
        for _ in range(2):
            model.zero_grad()
            driven.backward(loss_of(model[0]))
            driven.step(critic)
        model.zero_grad()
        driven.backward(loss_of(model[1]))
        driven.step(maker)
    assert [(len(r.losses), len(r.lr)) for r in driven.records()] == [(3, 3)] * 3


def test_a_loss_may_have_been_divided() -> None:
    """`divide` counts for the losses that follow it: they are told as they were before."""
    model, _ = two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    driven = Driven(model)
    truth = float(loss_of(model).detach())
    for by in (1.0, 4.0, 4.0):
        if by > 1:
            driven.collector.divide(by)
        driven.backward(loss_of(model) / by)
        driven.step(optimizer)
    records = driven.records()
    assert [record.loss for record in records] == pytest.approx([truth] * 3, rel=1e-6)
    assert [record.parts[0].divisor for record in records] == [1.0, 4.0, 4.0]
