"""More ways in which batches reach a loop: wrapped, buffered, cycled, mixed, nested, empty."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.loaders import over
from zoo.parts import Samples, Training, ids, loader_of, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


class Wrapping:
    """A class of somebody's own around a loader: on another device, counted, made anew."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.count += 1
            yield [part.clone() for part in batch]


def wrapping(truth: Truth, tracer: Tracer) -> None:
    """The loop sees copies of the batches only."""
    over(truth, tracer, loader_of(24, shuffle=True), through=Wrapping)


def wrapping_watched(truth: Truth, tracer: Tracer) -> None:
    """A wrapper is watched, its loader is given: one batch, not two."""
    over(truth, tracer, loader_of(24), through=Wrapping, watched=True)
    truth.quiet = False
    for step in truth.steps:
        step.unsure = {"batches"}  # the wrapper's have no ids, the loader's have

    def once(seen: Any) -> str | None:
        several = [r.batches for r in seen.steps if len(r.batches) > 1]
        return f"one batch told twice: {several[0]}" if several else None

    truth.checks.append(once)


def in_a_class(truth: Truth, tracer: Tracer) -> None:
    """The class holds an iterator and a `next_batch`, as older code does."""
    run, loader = Training(truth), loader_of(24, shuffle=True)

    class Feeder:
        def __init__(self) -> None:
            self.iterator, self.epoch, self.k = iter(loader), 0, -1

        def next_batch(self) -> Any:
            batch = next(self.iterator, None)
            if batch is None:
                self.iterator, self.epoch, self.k = iter(loader), self.epoch + 1, -1
                batch = next(self.iterator)
            self.k += 1
            return batch

    with tracer(run.model, loader=loader):
        feeder = Feeder()
        for _ in range(20):
            index, x, y = feeder.next_batch()
            run.step(x, y, (feeder.epoch, feeder.k, ids(index)))
        del feeder
    run.finish(loader=loader, batch=x)


def cycled(truth: Truth, tracer: Tracer) -> None:
    """`itertools.cycle` keeps the batches of the first epoch: later ones draw nothing."""
    run, loader = Training(truth), loader_of(24, shuffle=True)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(itertools.islice(itertools.cycle(loader), 16)):
            loss = squared(run.model, x, y)
            loss.backward()
            truth.backward(loss, (0, k % 6, ids(index)))
            truth.gradients(run.model)
            truth.step(run.optimizer, reused=k >= 6)
            run.optimizer.step()
            run.optimizer.zero_grad()
    run.finish(loader=loader, batch=x)


def numbered_and_sliced(truth: Truth, tracer: Tracer) -> None:
    """`enumerate(islice(...), start=1)`: an epoch is a part of the loader's."""
    run, loader = Training(truth), loader_of(40, shuffle=True)
    with tracer(run.model, loader=loader):
        for epoch in range(3):
            for k, (index, x, y) in enumerate(itertools.islice(loader, 4), start=1):
                run.step(x, y, (epoch, k - 1, ids(index)))
    run.finish(loader=loader, batch=x)


def buffered(loader: Iterable[Any]) -> Iterator[Any]:
    """Keeps two batches in store."""
    iterator = iter(loader)
    store = list(itertools.islice(iterator, 2))
    for batch in iterator:
        store.append(batch)
        yield store.pop(0)
    while store:
        yield store.pop(0)


def two_ahead(truth: Truth, tracer: Tracer) -> None:
    over(truth, tracer, loader_of(40, shuffle=True), through=buffered)
    truth.may_lack_batches(0)


def with_backwards_ahead(truth: Truth, tracer: Tracer) -> None:
    """One batch is fetched ahead, and each has two backwards: no batch moves forward."""
    run, loader = Training(truth), loader_of(40, shuffle=True)
    with tracer(run.model, loader=loader):
        iterator = iter(loader)
        following = next(iterator)
        for k in range(10):
            index, x, y = following
            following = next(iterator, None)
            for weight, batches in ((0.5, ((0, k, ids(index)),)), (0.1, ())):
                loss = weight * squared(run.model, x, y)
                loss.backward()
                truth.backward(loss, *batches)
            truth.gradients(run.model)
            run.use()
    truth.may_lack_batches(0)
    run.finish(loader=loader, batch=x)


def at_random(truth: Truth, tracer: Tracer) -> None:
    """Each step is of one of two loaders, drawn by chance, as in multi-task training."""
    run, loaders = Training(truth), [loader_of(80), loader_of(60, 3, shuffle=True)]
    chance = random.Random(1)
    with tracer(run.model, loader=loaders):
        iterators, counts = [iter(loader) for loader in loaders], [0, 0]
        for _ in range(20):
            task = chance.randrange(2)
            index, x, y = next(iterators[task])
            run.step(x, y, (0, counts[task], ids(index)))
            counts[task] += 1
    run.finish(loaders=loaders, batch=x)


def combined(truth: Truth, tracer: Tracer) -> None:
    """A combined loader: a mapping of batches, the shorter loader cycled without a cache."""
    run, loaders = Training(truth), {"a": loader_of(40), "b": loader_of(12, 3)}

    def batches() -> Iterator[dict[str, tuple[int, int, Any]]]:
        short: Any = iter(loaders["b"])
        epoch = at = 0
        for k, first in enumerate(loaders["a"]):
            second = next(short, None)
            if second is None:
                short, epoch, at = iter(loaders["b"]), epoch + 1, 0
                second = next(short)
            yield {"a": (0, k, first), "b": (epoch, at, second)}
            at += 1

    with tracer(run.model, loader=list(loaders.values())):
        for batch in batches():
            losses = [squared(run.model, x, y) for _, _, (_, x, y) in batch.values()]
            loss = torch.stack(losses).sum()
            loss.backward()
            truth.backward(loss, *((e, k, ids(index)) for e, k, (index, _, _) in batch.values()))
            truth.gradients(run.model)
            run.use()
    run.finish(loaders=list(loaders.values()))


def nested(batch: Any) -> dict[str, Any]:
    """A collate function's mapping of mappings and lists."""
    index, x, y = zip(*batch, strict=True)
    return {"meta": {"index": torch.stack(index)}, "data": [{"x": torch.stack(x)}, torch.stack(y)]}


def nested_batches(truth: Truth, tracer: Tracer) -> None:
    run, loader = Training(truth), loader_of(24, shuffle=True, collate_fn=nested)
    with tracer(run.model, loader=loader):
        for epoch in range(2):
            for k, batch in enumerate(loader):
                index, (x, y) = batch["meta"]["index"], batch["data"]
                run.step(x["x"], y, (epoch, k, ids(index)))
    run.finish(loader=loader)


def empty_batches(truth: Truth, tracer: Tracer) -> None:
    """A batch sampler that leaves some batches empty: the loss is a sum of nothing."""
    sampler: Any = [[0, 1, 2], [], [3, 4], [], [5]]

    def collate(batch: list[Any]) -> list[Tensor]:
        if not batch:
            return [torch.empty(0, dtype=torch.long), torch.empty(0, 6), torch.empty(0, 1)]
        return [torch.stack(part) for part in zip(*batch, strict=True)]

    run = Training(truth)
    loader = DataLoader(Samples(6), batch_sampler=sampler, collate_fn=collate)
    with tracer(run.model, loader=loader):
        for epoch in range(2):
            for k, (index, x, y) in enumerate(loader):
                loss = (run.model(x) - y).square().sum()
                loss.backward()
                truth.backward(loss, (epoch, k, ids(index)))
                truth.gradients(run.model)
                run.use()
    run.finish(loader=loader, batch=x)


def inference_on_the_same(truth: Truth, tracer: Tracer) -> None:
    """Batches of the training loader's own iterator are looked at in inference mode only."""
    run, loader = Training(truth), loader_of(60, shuffle=True)
    with tracer(run.model, loader=loader):
        iterator: Any = enumerate(loader)
        for k, (index, x, y) in iterator:
            run.step(x, y, (0, k, ids(index)))
            if k % 3 == 2:
                with torch.inference_mode():
                    _, (_, x, y) = next(iterator, (0, (index, x, y)))
                    truth.keep("tried", squared(run.model, x, y).clone())
    run.finish(loader=loader)


LOOPS: tuple[Callable[[Truth, Tracer], None], ...] = (
    wrapping,
    wrapping_watched,
    in_a_class,
    cycled,
    numbered_and_sliced,
    two_ahead,
    with_backwards_ahead,
    at_random,
    combined,
    nested_batches,
    empty_batches,
    inference_on_the_same,
)
