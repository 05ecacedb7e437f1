"""Which backwards each gradient is the sum of: against a slow account of the same events."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from ranks import alone
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from gradtrace.collect import ledger as module
from gradtrace.collect.ledger import Changes, Ledger
from gradtrace.handover.step import Part
from gradtrace.measure.parameters import Parameters
from gradtrace.sampling import Sampling

NAMES = ("a", "b", "c", "d")


class Oracle:
    """For each parameter the numbers of the backwards that its gradient is the sum of."""

    def __init__(self, count: int) -> None:
        self.sums: list[list[int]] = [[] for _ in range(count)]
        self.waits = [False] * count
        self.used: set[int] = set()

    def backward(self, number: int, written: Iterable[int]) -> None:
        for i in written:
            self.sums[i] = [n for n in self.sums[i] if n not in self.used] + [number]
            self.waits[i] = True

    def thrown_away(self, positions: Iterable[int]) -> tuple[set[int], set[int]]:
        """The positions that lost a gradient that was waited for, and the backwards now gone."""
        before = {n for one in self.sums for n in one}
        dropped = set()
        for i in positions:
            if self.sums[i] and self.waits[i]:
                dropped.add(i)
            self.sums[i], self.waits[i] = [], False
        return dropped, before - {n for one in self.sums for n in one} - self.used

    def use(self, positions: Iterable[int]) -> list[int]:
        """What a step of these parameters is made of."""
        positions = list(positions)
        fresh = {n for i in positions for n in self.sums[i]} - self.used
        for i in positions:
            self.waits[i] = False
        self.used |= fresh
        return sorted(fresh)


class Loop:
    """A model of single parameters, its ledger, and the oracle that hears of the same events."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.chance = random.Random(seed)
        self.model = nn.ParameterDict({name: torch.randn(3) for name in NAMES})
        self.parameters = Parameters({"": self.model}, Sampling())
        self.ledger = Ledger(self.parameters)
        self.oracle = Oracle(len(NAMES))
        self.backwards = 0
        self.dropped: set[int] = set()
        self.lost: set[int] = set()
        self.told_dropped: list[int] = []
        self.told_lost: list[int] = []

    def some(self) -> list[int]:
        return sorted(self.chance.sample(range(len(NAMES)), self.chance.randint(1, len(NAMES))))

    def tensor(self, i: int) -> nn.Parameter:
        tensor = self.model[NAMES[i]]
        assert isinstance(tensor, nn.Parameter)
        return tensor

    def heard(self, changes: Changes) -> None:
        self.told_dropped += changes.dropped
        self.told_lost += [part.number for part in changes.lost]

    def thrown_away(self, positions: Iterable[int]) -> None:
        dropped, lost = self.oracle.thrown_away(positions)
        self.dropped |= dropped
        self.lost |= lost

    # -- what loops do ---

    def backward(self) -> None:
        written = self.some()
        self.heard(self.ledger.settle())
        torch.stack([self.tensor(i).square().sum() for i in written]).sum().backward()
        part = Part(self.backwards, None)
        assert self.ledger.written(part) == written
        self.oracle.backward(self.backwards, written)
        self.backwards += 1

    def zero_grad(self) -> None:
        positions = self.some()
        optimizer = torch.optim.SGD([self.tensor(i) for i in positions], lr=0.1)
        had = [i for i in positions if self.tensor(i).grad is not None]
        optimizer.zero_grad(set_to_none=self.chance.random() < 0.5)
        self.ledger.zeroed(positions)
        self.thrown_away(had)
        self.heard(self.ledger.settle())

    def zeroed_by_hand(self) -> None:
        for i in self.some():
            tensor = self.tensor(i)
            if tensor.grad is not None:
                how = self.chance.randrange(3)
                if how == 0:
                    tensor.grad = None
                elif how == 1:
                    tensor.grad.zero_()
                else:
                    tensor.grad = torch.zeros_like(tensor)
                self.thrown_away([i])
        self.heard(self.ledger.settle())

    def clip(self) -> None:
        positions = [i for i in self.some() if self.tensor(i).grad is not None]
        nn.utils.clip_grad_norm_([self.tensor(i) for i in positions], 0.5)
        self.ledger.known(positions)
        assert self.ledger.glance(range(len(NAMES)))[2] == []

    def change_by_hand(self) -> None:
        positions = [i for i in self.some() if self.tensor(i).grad is not None]
        for i in positions:
            grad = self.tensor(i).grad
            assert grad is not None
            if self.chance.random() < 0.5:
                grad.mul_(2.0)
                if not self.oracle.waits[i]:
                    self.oracle.sums[i] = []  # was used, and is written to: zeroed for all we know
            else:
                self.tensor(i).grad = grad * 2.0
        assert self.ledger.glance(range(len(NAMES)))[2] == positions
        self.heard(self.ledger.settle())

    def step(self) -> None:
        positions = self.some()
        assert self.ledger.unused(positions) == any(self.oracle.waits[i] for i in positions)
        expected = self.oracle.use(positions)
        assert [part.number for part in self.ledger.use(positions)] == expected

    def replace(self) -> None:
        position = self.chance.randrange(len(NAMES))
        self.model[NAMES[position]] = nn.Parameter(torch.randn(self.chance.randint(1, 4)))
        assert self.parameters.refresh()
        self.thrown_away([position])
        self.heard(self.ledger.grow())

    def check(self) -> None:
        waiting = [i for i, waits in enumerate(self.oracle.waits) if waits]
        assert self.ledger.waiting() == waiting and self.ledger.alive == bool(waiting)
        for i, numbers in enumerate(self.oracle.sums):
            found = [part.number for part in self.ledger.parts([i])]
            assert [n for n in found if n not in self.oracle.used] == [
                n for n in numbers if n not in self.oracle.used
            ]
        assert set(self.told_dropped) == self.dropped
        assert sorted(self.told_lost) == sorted(self.lost)  # each once
        self.told_dropped, self.dropped = [], set()
        known = {part.number for part in self.ledger.parts(range(len(NAMES)))}
        assert self.ledger._sums.keys() == known  # nothing is remembered for ever


EVENTS: list[Callable[[Loop], None]] = [
    *(Loop.backward, Loop.backward, Loop.backward, Loop.step, Loop.step),
    *(Loop.zero_grad, Loop.zeroed_by_hand, Loop.clip, Loop.change_by_hand, Loop.replace),
]


@pytest.mark.parametrize("seed", range(60))
def test_any_loop_is_accounted_for(seed: int) -> None:
    """After each of 60 events of any kind both accounts agree on every parameter."""
    loop = Loop(seed)
    for _ in range(60):
        loop.chance.choice(EVENTS)(loop)
        loop.check()
    assert len(loop.oracle.used) + len(loop.lost) > 5


def linear() -> tuple[nn.Linear, Parameters, Ledger]:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    parameters = Parameters({"": model}, Sampling())
    return model, parameters, Ledger(parameters)


def backward(model: nn.Module, ledger: Ledger, number: int) -> list[int]:
    ledger.settle()
    torch.stack([p.square().sum() for p in model.parameters()]).sum().backward()
    return ledger.written(Part(number, None))


def test_gradients_from_before_are_nobodys() -> None:
    """What a model brings along when it begins to be watched came from no backward of ours."""
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    ledger = Ledger(Parameters({"": model}, Sampling()))
    assert ledger.waiting() == [] and ledger.glance([0, 1])[2] == []
    assert backward(model, ledger, 0) == [0, 1]
    assert [part.number for part in ledger.use([0, 1])] == [0]


def test_a_backward_on_unknown_parameters_is_found() -> None:
    """Those that took the place of others are looked at once somebody has refreshed the list."""
    model, parameters, ledger = linear()
    assert backward(model, ledger, 0) == [0, 1]
    ledger.use([0, 1])
    model.weight = nn.Parameter(torch.ones(2, 2))
    ledger.settle()
    model.weight.sum().backward()
    part = Part(1, None)
    assert ledger.written(part) == [] and parameters.refresh()
    assert ledger.found(part) == [0] and ledger.waiting() == [0]
    assert ledger.use([0, 1]) == [part]


def test_what_was_lost_with_a_parameter_is_told_once() -> None:
    """Also where it shows only after the next backward."""
    model, parameters, ledger = linear()
    backward(model, ledger, 0)
    for name in ("weight", "bias"):
        setattr(model, name, nn.Parameter(torch.ones_like(getattr(model, name))))
    ledger.settle()
    model.weight.sum().backward()
    part = Part(1, None)
    assert ledger.written(part) == []
    parameters.refresh()
    assert ledger.found(part) == [0]
    changes = ledger.settle()
    assert changes.dropped == [0, 1] and [lost.number for lost in changes.lost] == [0]
    assert ledger.settle() == Changes()


def test_another_owners_zeroing_is_not_ours() -> None:
    """`zero_grad` of one optimizer throws nothing of another's away that was changed by hand."""
    model, _, ledger = linear()
    backward(model, ledger, 0)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)
    ledger.zeroed([1])
    changes = ledger.settle()
    assert changes.dropped == [1] and changes.changed == [0]


@pytest.mark.parametrize("far", [False, True])
def test_zeroing_that_nobody_announced(far: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is seen where values can be looked at; elsewhere, of what was used only."""
    if far:
        monkeypatch.setattr(module, "_is_zero", lambda grad: False)
    model, _, ledger = linear()
    backward(model, ledger, 0)
    ledger.use([0])
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()
    changes = ledger.settle()
    assert (changes.dropped, changes.changed) == (([], [1]) if far else ([1], []))


def test_a_freed_gradients_number_means_nothing() -> None:
    """A gradient that comes to lie where a freed one lay, of the same version, is another."""
    model, _, ledger = linear()
    held: list[Tensor] = []
    for number in range(50):
        assert backward(model, ledger, number) == [0, 1]
        model.zero_grad()
        held.append(torch.empty(2, 2))
    assert [part.number for part in ledger.settle().lost] == [49]


def test_nothing_is_kept_alive() -> None:
    """Neither gradients nor parameters that are gone."""
    model, parameters, ledger = linear()
    backward(model, ledger, 0)
    grad, old = weakref.ref(model.weight.grad), weakref.ref(model.weight)
    model.weight = nn.Parameter(torch.ones(2, 2))
    parameters.refresh()
    ledger.settle()
    gc.collect()
    assert grad() is None and old() is None


def test_a_loop_that_never_zeroes_does_not_grow() -> None:
    """What a step has had is forgotten with the next backward, though it is in the gradient."""
    model, _, ledger = linear()
    for number in range(20):
        backward(model, ledger, number)
        assert [part.number for part in ledger.use([0, 1])] == [number]
    assert len(ledger._sums) == 1


def test_a_sum_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loop that never uses its gradients the newest backwards are remembered."""
    monkeypatch.setattr(module, "MOST", 5)
    model, _, ledger = linear()
    for number in range(5):
        backward(model, ledger, number)
    assert not ledger.overflown
    for number in range(5, 30):
        backward(model, ledger, number)
    assert ledger.overflown and len(ledger._sums) == 5
    assert [part.number for part in ledger.use([0, 1])] == [25, 26, 27, 28, 29]


@pytest.mark.parametrize("synced", [(True, True, True), (False, False, True), (True, False, True)])
def test_what_is_accumulated_in_shards_is_one_sum(synced: tuple[bool, ...]) -> None:
    """Whether FSDP2 adds into a DTensor's local tensor or holds gradients back, and then reduces.

    No backward is another model's, no gradient seems to be changed or thrown away by the loop.
    """
    with alone():
        model: Any = fully_shard(nn.Linear(2, 2))
        ledger = Ledger(Parameters({"": model}, Sampling()))
        for number, sync in enumerate(synced):
            model.set_requires_gradient_sync(sync)
            assert ledger.settle() == Changes()
            model(torch.ones(1, 2)).sum().backward()
            assert ledger.written(Part(number, None)) == [0, 1]
            assert ledger.glance([0, 1])[2] == []
        assert ledger.settle() == Changes() and not ledger.made([0, 1])
        assert [part.number for part in ledger.use([0, 1])] == [0, 1, 2]
        model.zero_grad()
        assert ledger.settle() == Changes(cleared=[0, 1]) and not ledger.alive
