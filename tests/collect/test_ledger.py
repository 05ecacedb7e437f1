"""Each gradient knows the backwards it was summed from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradtrace.collect.ledger import Ledger
from gradtrace.handover.step import Part
from gradtrace.measure.parameters import Parameters
from gradtrace.sampling import Sampling


class Book:
    """A ledger of two layers, in which backwards are numbered."""

    def __init__(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(2))
        self.ledger = Ledger(Parameters({"": self.layers}, Sampling()))
        self.parts: list[Part] = []

    def backward(self, *layers: int) -> list[int]:
        """A backward through these layers; the positions that it wrote."""
        self.ledger.settle()
        loss = torch.stack([self.layers[k](torch.ones(1, 2)).sum() for k in layers]).sum()
        loss.backward()
        self.parts.append(Part(len(self.parts), None))
        return self.ledger.written(self.parts[-1])

    def grad(self, layer: int) -> Tensor:
        grad = self.layers[layer].weight.grad
        assert isinstance(grad, Tensor)
        return grad

    def used(self, *positions: int) -> list[int]:
        return [part.number for part in self.ledger.use(positions)]


def test_a_sum_belongs_to_who_uses_it() -> None:
    """All its backwards, once; what is used and not zeroed is no part of the next sum."""
    book = Book()
    assert book.backward(0, 1) == [0, 1] and book.backward(0) == [0]
    assert book.ledger.alive and book.ledger.waiting() == [0, 1]
    assert book.used(0, 1) == [0, 1] and book.used(0, 1) == []
    assert not book.ledger.alive
    book.backward(0, 1)
    assert book.used(0, 1) == [2]


def test_the_first_to_use_a_backward_has_it() -> None:
    """Two optimizers with gradients of one backward: the second's are still seen as waiting."""
    book = Book()
    book.backward(0, 1)
    assert book.used(0) == [0]
    assert book.ledger.waiting() == [1] and [p.number for p in book.ledger.parts([1])] == [0]
    assert book.used(1) == [] and not book.ledger.alive


def test_what_is_thrown_away_is_told_with_its_last_gradient() -> None:
    """A backward is lost when none of its gradients is left."""
    book = Book()
    book.backward(0, 1)
    book.layers[0].zero_grad()
    changes = book.ledger.settle()
    assert (changes.dropped, changes.lost, changes.changed) == ([0], [], [])
    book.layers[1].zero_grad(set_to_none=False)
    changes = book.ledger.settle()
    assert changes.dropped == [1] and changes.lost == book.parts
    assert not book.ledger.alive


def test_what_was_used_is_not_lost() -> None:
    """Zeroing after a step throws nothing away."""
    book = Book()
    book.backward(0, 1)
    book.used(0, 1)
    book.layers.zero_grad()
    changes = book.ledger.settle()
    assert (changes.dropped, changes.lost) == ([], [])


def test_work_on_gradients_keeps_their_account() -> None:
    """Changed in place or replaced, a gradient is still its backwards'; `known` expects it."""
    book = Book()
    book.backward(0, 1)
    book.grad(0).mul_(0.5)
    book.layers[1].weight.grad = torch.ones(1, 2)
    assert book.ledger.touched([0, 1]) == [0, 1]
    assert book.ledger.settle().changed == [0, 1]
    book.grad(0).mul_(0.5)
    book.ledger.known([0])
    assert book.ledger.touched([0, 1]) == [] and book.ledger.settle().changed == []
    assert book.used(0, 1) == [0]


def test_the_end_lets_go_of_all_backwards() -> None:
    """Nothing waits, and nothing has parts."""
    book = Book()
    book.backward(0, 1)
    book.ledger.clear()
    assert not book.ledger.alive and book.ledger.parts([0, 1]) == []
