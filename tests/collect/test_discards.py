"""What thrown-away gradients were: dropped, looked at, or used by the loop in its own way."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from driven import EVERYTHING, Driven
from torch import Tensor, nn

from gradtrace.collect import discards as module
from gradtrace.collect.discards import Discards
from gradtrace.handover.step import Batch, Lost, Part, Step
from gradtrace.measure.parameters import Parameters
from gradtrace.records import StepRecord
from gradtrace.sampling import Sampling


def parts(*numbers: int, batches: bool = True) -> list[Part]:
    return [Part(n, None, (Batch(0, n, n),) if batches else ()) for n in numbers]


def discards() -> tuple[nn.Linear, Discards]:
    model = nn.Linear(2, 2)
    return model, Discards(Parameters({"": model}, Sampling()))


def numbers(lost: list[Lost]) -> list[list[int]]:
    return [[part.number for part in one.parts] for one in lost]


def test_what_was_dropped_goes_with_the_next_step() -> None:
    """Each as it was lost, with what was measured of it; then it is told."""
    _, found = discards()
    measured = Lost([])
    found.add(parts(0, 1), measured)
    found.add(parts(2), None)
    used = parts(3)
    settled = found.settle(used, made=False)
    assert settled.parts == used and numbers(settled.lost) == [[0, 1], [2]]
    assert settled.lost[0] is measured and settled.lost[0].ended <= settled.lost[1].ended
    assert found.count == 2
    assert found.settle(parts(4), made=False).lost == []


def test_a_batch_that_is_used_again_is_the_steps() -> None:
    """The newest that was thrown away with a batch, when the step has none of its own."""
    _, found = discards()
    found.add(parts(0), None)
    found.add(parts(1), None)
    found.add(parts(2, batches=False), None)
    [used] = parts(3, batches=False)
    settled = found.settle([used], made=False)
    assert [batch.ordinal for batch in used.batches] == [1]
    assert [[b.ordinal for p in one.parts for b in p.batches] for one in settled.lost] == [
        *([0], [], [])
    ]


def test_gradients_that_moved_the_parameters_were_used() -> None:
    """The loop's own code did it, as SAM does: nothing was thrown away, and the batch is again."""
    model, found = discards()
    found.backward([0, 1])
    with torch.no_grad():
        model.weight.add_(0.1)
    found.add(parts(0), None)
    assert found.count == 0
    [used] = parts(1, batches=False)
    settled = found.settle([used], made=False)
    assert settled.lost == [] and [batch.ordinal for batch in used.batches] == [0]


def test_gradients_that_others_were_made_of_were_used() -> None:
    """Where the loop puts its own in their place, all backwards since the last step led to them."""
    _, found = discards()
    lost = parts(0, 1)
    found.add(lost[:1], None)
    found.add(lost[1:], None)
    settled = found.settle(parts(2, batches=False), made=True)
    assert [part.number for part in settled.parts] == [0, 1, 2] and settled.lost == []
    assert settled.last is not None and settled.last.parts == lost[1:]
    assert found.count == 0 and all(part.used for part in lost)


def test_own_gradients_of_an_own_batch_leave_the_others_dropped() -> None:
    """A batch that was delivered since is what these were made of."""
    _, found = discards()
    found.add(parts(0), None)
    settled = found.settle(parts(1), made=True)
    assert numbers(settled.lost) == [[0]] and found.count == 1


def test_a_step_without_gradients_used_nothing() -> None:
    """An optimizer that steps when all gradients are gone has not used what was dropped."""
    _, found = discards()
    found.add(parts(0), None)
    settled = found.settle([], made=False)
    assert settled.parts == [] and numbers(settled.lost) == [[0]]


def test_a_flood_is_counted() -> None:
    """Of more than 64 between two steps the first are remembered."""
    _, found = discards()
    for n in range(100):
        found.add(parts(n), None)
    assert found.many and found.count == 100
    assert len(found.settle(parts(100), made=False).lost) == module.MOST
    assert not found.many


def test_the_rest_is_told_at_the_end() -> None:
    """What no step has followed, but for what the loop used in its own way."""
    model, found = discards()
    found.add(parts(0), None)
    found.backward([0])
    with torch.no_grad():
        model.weight.add_(0.1)
    found.add(parts(1), None)
    assert numbers(found.rest()) == [[0]] and found.rest() == []


# -- in loops ---


class Loop:
    """A loop with one optimizer that writes down what each step used and what was dropped."""

    def __init__(self, seed: int, sampling: Sampling) -> None:
        torch.manual_seed(seed)
        self.chance = random.Random(seed)
        self.model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.driven = Driven(self.model, sampling)
        self.sum: list[tuple[float, list[int]]] = []
        self.dropped: list[tuple[float, float, list[int]]] = []
        self.steps: list[dict[str, Any]] = []
        self.delivered = self.count = 0
        self.norm = 0.0

    def forward_backward(self) -> None:
        batches = []
        for _ in range(self.chance.randint(1, 2)):
            batches.append(self.driven.batch(self.delivered).ordinal)
            assert self.driven.batches.take_by_hand(self.driven)  # a loop of no rhythm says it
            self.delivered += 1
        x = torch.randn(4, 3) * self.chance.choice([1.0, 10.0])
        loss = torch.stack([layer(x).square().mean() for layer in self.model]).sum()
        self.driven.backward(loss)
        self.sum.append((float(loss.detach()), batches))
        grads = [p.grad.double().norm() for p in self.model.parameters() if p.grad is not None]
        self.norm = float(torch.stack(grads).norm())

    def drop(self) -> None:
        how = self.chance.randrange(5)
        if how < 3:
            self.driven.zero(self.optimizer if how else self.model, to_none=how == 2)
        for parameter in self.model.parameters():
            if how == 3 and parameter.grad is not None:
                parameter.grad.zero_()
            elif how == 4:
                parameter.grad = None
        if self.sum:
            losses = [loss for loss, _ in self.sum]
            batches = [batch for _, some in self.sum for batch in some]
            self.dropped.append((sum(losses) / len(losses), self.norm, batches))
            self.count += 1
        self.sum = []

    def clip(self) -> None:
        if self.sum:
            self.driven.clip_norm(self.chance.choice([0.1, 1e6, math.inf]))

    def step(self) -> None:
        self.driven.step(self.optimizer)
        self.steps.append(
            {
                "losses": [loss for loss, _ in self.sum],
                "batches": [batches for _, batches in self.sum],
                "norm": self.norm if self.sum else None,
                "dropped": self.dropped,
            }
        )
        self.sum, self.dropped = [], []
        self.driven.zero(self.optimizer)


def ordinals(part: Any) -> list[int]:
    return [batch.ordinal for batch in part.batches]


@pytest.mark.parametrize("first", [0, 10])
@pytest.mark.parametrize("seed", range(20))
def test_any_loop_that_drops_batches_is_told_right(seed: int, first: int) -> None:
    """Steps have the losses and batches whose gradients were used, discards those of the rest."""
    loop = Loop(seed, EVERYTHING if first else Sampling(activations=0, updates=0, first=0))
    events = [Loop.forward_backward, Loop.forward_backward, Loop.drop, Loop.clip, Loop.step]
    for _ in range(60):
        loop.chance.choice(events)(loop)
    loop.forward_backward()
    loop.step()
    records = loop.driven.records()
    assert len(records) == len(loop.steps)
    for record, truth in zip(records, loop.steps, strict=True):
        assert record.losses == pytest.approx(truth["losses"], rel=1e-5)
        assert [ordinals(part) for part in record.parts] == truth["batches"]
        assert [ordinals(one) for one in record.discarded] == [d[2] for d in truth["dropped"]]
        losses = [one.loss for one in record.discarded]
        assert losses == pytest.approx([d[0] for d in truth["dropped"]], rel=1e-5)
        if truth["norm"] is not None:
            assert record.grad_norm == pytest.approx(truth["norm"], rel=1e-5)
        for one, (_, norm, _) in zip(record.discarded, truth["dropped"], strict=True):
            assert one.norm is None or one.norm == pytest.approx(norm, rel=1e-5)
    assert loop.driven.collector.discarded == loop.count
    if first:
        assert all(one.norm is not None for one in records[0].discarded)


def dropping(sampling: Sampling = EVERYTHING) -> StepRecord:
    """A loop that clips, finds the norm too large and drops the batch; its next step."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    driven = Driven(model, sampling)
    for size in (1.0, math.nan, 2.0):
        driven.batch(int(size) if size == size else 7)
        driven.backward(model(torch.ones(2, 4)).sum() * size)
        driven.clip_norm(1.0)
        if size == size:
            driven.step(optimizer)
        driven.zero(optimizer)
    records = driven.records()
    assert len(records) == 2
    return records[1]


def test_a_dropped_batch_takes_its_norm_and_clips_along() -> None:
    """The step after it is clean, and what was dropped has its own loss, norm and batch."""
    record = dropping()
    assert record.losses == (record.loss,) and record.loss is not None
    assert math.isfinite(record.loss) and record.clip is not None and record.clip.calls == 1
    assert record.grad_norm == pytest.approx(record.clip.norm_before, rel=1e-5)
    assert [batch.sample_ids for batch in record.batches] == [(2,)]
    [discard] = record.discarded
    assert discard.loss is not None and math.isnan(discard.loss)
    assert discard.norm is not None and math.isnan(discard.norm)
    assert [batch.sample_ids for batch in discard.batches] == [(7,)]


def test_the_norm_of_a_drop_is_known_by_its_clip_too() -> None:
    """Where no gradient is measured."""
    record = dropping(Sampling(gradients=0, activations=0, updates=0, first=0))
    [discard] = record.discarded
    assert discard.norm is not None and math.isnan(discard.norm)
    assert record.grad_norm is not None and math.isfinite(record.grad_norm)


def test_gradient_surgery_has_all_its_losses() -> None:
    """A backward for each task, merged and put back: the step used them all."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    driven = Driven(model)
    for k in range(4):
        driven.batch(k)
        output, tasks, losses = model(torch.randn(8, 4)), [], []
        for task in output.square().mean(0):
            driven.zero(optimizer)
            driven.backward(task, retain=True)
            losses.append(float(task.detach()))
            tasks.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for parameter, *grads in zip(model.parameters(), *tasks, strict=True):
            parameter.grad = torch.stack(grads).sum(0)
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        driven.step(optimizer)
        driven.zero(optimizer)
        [record] = driven.records()
        assert record.losses == pytest.approx(losses, rel=1e-6) and record.discarded == ()
        assert [batch.sample_ids for batch in record.batches] == [(k,)]
        if k:  # before it was seen that gradients are replaced, they were read too late or early
            assert record.grad_norm == pytest.approx(float(norm), rel=1e-5)


def test_a_step_by_hand_after_zeroing() -> None:
    """A loop that moves by its own code, zeroes, and then says that a step has ended."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    driven = Driven(model)
    driven.collector.mark()
    for k in range(3):
        driven.batch(k)
        loss = model(torch.randn(8, 4)).square().mean()
        driven.backward(loss)
        grads = [p.grad for p in model.parameters() if isinstance(p.grad, Tensor)]
        norm = float(torch.stack([grad.norm() for grad in grads]).norm())
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.sub_(grad * 0.1)
        driven.zero(model)
        driven.collector.mark()
        [record] = driven.records()
        assert record.loss == pytest.approx(float(loss.detach()), rel=1e-6)
        assert [batch.sample_ids for batch in record.batches] == [(k,)]
        assert record.grad_norm == pytest.approx(norm, rel=1e-5) and record.discarded == ()


def test_an_attack_belongs_to_no_step() -> None:
    """A backward that was only looked at leaves the loss alone; its batch is the training's."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    driven = Driven(model)
    for k in range(3):
        driven.batch(k)
        driven.backward(model(torch.randn(8, 4)).square().mean() * 100)
        driven.zero(model)
        loss = model(torch.randn(8, 4)).square().mean()
        driven.backward(loss)
        driven.step(optimizer)
        driven.zero(optimizer)
        [record] = driven.records()
        assert record.losses == pytest.approx([float(loss.detach())], rel=1e-6)
        assert [batch.sample_ids for batch in record.batches] == [(k,)]
        assert [one.batches for one in record.discarded] == [()]
    assert driven.collector.discarded == 3


def test_modules_of_a_dropped_batch_are_not_the_steps() -> None:
    """Activations of the forward that came to nothing are let go when `zero_grad` says so."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    driven = Driven(model)
    driven.collector.outputs.module_names.append("fc")
    for size in (1e6, 1.0):
        driven.collector.outputs.activations.add(0, torch.full((3,), size))
        driven.backward(model(torch.ones(1, 4)).sum())
        if size == 1.0:
            driven.step(optimizer)
        driven.zero(optimizer)
    [record] = driven.records()
    assert record.activations is not None
    assert record.activations["fc", "max"] == 1.0


def test_forgetting_is_told_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `Step` whose gradients partly went has no row of them."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    halves = [torch.optim.SGD(half.parameters(), lr=0.1) for half in model]
    driven = Driven(model)
    driven.backward(torch.stack([p.square().sum() for p in model.parameters()]).sum())
    driven.clip_norm(math.inf)
    driven.zero(halves[1])
    driven.step(halves[0])
    driven.collector.finish()
    [item] = driven.taken()
    assert isinstance(item, Step)
    record = driven._assembler.record(item)
    assert record.gradients is not None
    assert [math.isnan(v) for v in record.gradients.column("norm")] == [False, False, True, True]
    assert len(record.losses) == 1 and record.discarded == ()
