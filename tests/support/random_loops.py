"""Training loops of random shape that write down which batches each of their losses had.

What a step consumed is counted here by the loop itself, so that nothing of gradtrace is asked. How
many batches a backward has is chance, so the loops say when they take one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from loops import data, ids_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gradtrace import BatchRef, Trace, gradtrace

Watch = Callable[[Iterable[Any]], Iterator[Any]]


@dataclass
class Written:
    """What one step was made of: losses, each with its batches, and all batches in order."""

    parts: list[tuple[float, tuple[BatchRef, ...]]] = field(default_factory=list)
    batches: list[BatchRef] = field(default_factory=list)


class Diary:
    """The loop's own account of what it does."""

    def __init__(self) -> None:
        self.steps: list[Written] = []
        self._open = Written()
        self._unused: list[BatchRef] = []
        self._ordinal = 0

    def delivered(self, epoch: int, batch_index: int, ids: tuple[int, ...] | None) -> None:
        batch = BatchRef(epoch, batch_index, self._ordinal, ids)
        self._ordinal += 1
        self._unused.append(batch)

    def backward(self, loss: Tensor) -> None:
        self._open.parts.append((float(loss.detach()), tuple(self._unused)))
        self._open.batches += self._unused
        self._unused = []

    def moved(self, *, last: bool) -> None:
        """An optimizer stepped; what came after the backward before it is the next one's."""
        if last:
            self.steps.append(self._open)
            self._open = Written()


class Source:
    """A loader from which single batches are taken by hand; begins anew at its end."""

    def __init__(
        self, trace: Trace, loader: Iterable[Any], watch: Watch, diary: Diary, *, ids: bool
    ) -> None:
        self._trace = trace
        self._loader = loader
        self._watch = watch
        self._diary = diary
        self._ids = ids
        self._iterator: Iterator[Any] = iter(())
        self._epoch = self._index = -1

    def draw(self) -> tuple[Tensor, Tensor]:
        for _ in range(2):
            for index, x, y in self._iterator:
                self._index += 1
                ids = ids_of(index) if self._ids else None
                self._diary.delivered(self._epoch, self._index, ids)
                assert self._trace.take(self._loader)
                return x, y
            self._iterator = self._watch(self._loader)
            self._epoch, self._index = self._epoch + 1, -1
        raise AssertionError("a loader without batches")


@dataclass(frozen=True)
class Shape:
    """What a loop is like; the rest is chance.

    `optimizers`: 1, or 2 that make one round. `in_turn`: each of two has losses of its own, as in
    a GAN; `closure`: the second computes its loss inside its step. `unowned`: a layer gets
    gradients that no optimizer uses. `plain`: the second loader is a list, which has no sample ids.
    `ragged`: the loop ends within a step.
    """

    optimizers: int = 1
    in_turn: bool = False
    closure: bool = False
    unowned: bool = False
    plain: bool = False
    ragged: bool = False


def run(shape: Shape, seed: int, *, rounds: int = 12) -> tuple[Diary, Trace]:
    """A traced loop and what it wrote down."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    layers = nn.ModuleList(nn.Linear(5, 4) for _ in range(3 if shape.unowned else 2))
    halves = [layers[:1], layers[1:2]] if shape.optimizers == 2 else [layers[:2]]
    optimizers = [torch.optim.SGD(half.parameters(), lr=0.01) for half in halves]
    first = DataLoader(data(22, 5), batch_size=4, shuffle=True)
    second = DataLoader(data(9, 5), batch_size=3)
    diary = Diary()
    watched = [first] if shape.plain else [first, second]
    with gradtrace(layers, loader=watched, directory=None) as trace:
        sources = [
            Source(trace, first, iter, diary, ids=True),
            Source(trace, list(second), trace.batches, diary, ids=False)
            if shape.plain
            else Source(trace, second, iter, diary, ids=True),
        ]

        def draw(most: int) -> list[tuple[Tensor, Tensor]]:
            return [chance.choice(sources).draw() for _ in range(chance.randint(0, most))]

        def micro_batch(trained: Iterable[nn.Module]) -> None:
            loss = sum(p.square().sum() for layer in trained for p in layer.parameters())
            assert isinstance(loss, Tensor)
            for x, y in draw(3):
                loss = loss + sum(F.cross_entropy(layer(x), y) for layer in layers)
            loss.backward()
            diary.backward(loss)

        def part_of_a_round(trained: Iterable[nn.Module]) -> None:
            for _ in range(chance.randint(1, 4)):
                micro_batch(trained)
            draw(2)

        def evaluate() -> float:
            micro_batch(halves[1])
            return 0.0

        for _ in range(rounds):
            for at, optimizer in enumerate(optimizers):
                if at == 0 or (shape.in_turn and not shape.closure):
                    part_of_a_round(halves[at] if shape.in_turn else layers)
                else:
                    draw(2)
                optimizer.step(evaluate if at and shape.closure else None)
                diary.moved(last=optimizer is optimizers[-1])
            layers.zero_grad()
        if shape.ragged:
            part_of_a_round(layers)
            if shape.optimizers == 2:
                optimizers[0].step()
                diary.moved(last=True)
                draw(2)
                micro_batch(layers)
    return diary, trace
