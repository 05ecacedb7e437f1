"""Ways in which batches reach a loop: which of them a step was made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from zoo import custom
from zoo.parts import Samples, Training, ids, loader_of
from zoo.tracing import Tracer
from zoo.truth import Truth


def named(index: Any) -> tuple[str, ...]:
    """Names instead of numbers."""
    return tuple(f"document {k}" for k in index.tolist())


def over(
    truth: Truth,
    tracer: Tracer,
    loader: DataLoader[Any],
    *,
    epochs: int = 2,
    given: bool = True,
    watched: bool = False,
    through: Callable[[Any], Any] = lambda loader: loader,
    named: Callable[[Any], Any] = ids,
    stop: int = 1000,
    **options: Any,
) -> None:
    """Epochs over a loader that is `given` to the trace, `watched` through `trace.batches`, or
    both; the loop goes `through` something over it, and its batches are `named` by their index.
    """
    run = Training(truth)
    with tracer(run.model, loader=loader if given else None, **options) as trace:
        batches = trace.batches if watched else iter
        for epoch in range(epochs):
            for k, (index, x, y) in enumerate(batches(through(loader))):
                if k == stop:
                    break
                run.step(x, y, (epoch, k, named(index)))
    if not given and not watched:
        truth.quiet = False  # which loader is taken for training may be said
    run.finish(loader=loader, batch=x)
    iterator: Any = loader._iterator
    if iterator is not None:
        iterator._shutdown_workers()  # in a cycle, they would be waited for


def nobody_told(truth: Truth, tracer: Tracer) -> None:
    """No loader is given: the one that is iterated is found."""
    over(truth, tracer, loader_of(24, shuffle=True), given=False)


def watched(truth: Truth, tracer: Tracer) -> None:
    over(truth, tracer, loader_of(24, shuffle=True), given=False, watched=True)


def watched_and_given(truth: Truth, tracer: Tracer) -> None:
    """Two ways in, one batch."""
    over(truth, tracer, loader_of(24, shuffle=True), watched=True)


def broken_off(truth: Truth, tracer: Tracer) -> None:
    """Epochs that end early."""
    over(truth, tracer, loader_of(40, shuffle=True), epochs=3, stop=4)


def one_ahead(truth: Truth, tracer: Tracer) -> None:
    over(truth, tracer, loader_of(24, shuffle=True), through=custom.Ahead)
    truth.may_lack_batches(0)


def one_ahead_untold(truth: Truth, tracer: Tracer) -> None:
    over(truth, tracer, loader_of(24), through=custom.Ahead, given=False)
    truth.may_lack_batches(0)


def in_a_thread(truth: Truth, tracer: Tracer) -> None:
    """Another thread draws: right batches, or none and a note."""
    over(truth, tracer, loader_of(48), epochs=1, through=custom.InThread)
    truth.quiet = False
    for step in truth.steps:
        step.lacks = {"batches", "ids"}


def workers(truth: Truth, tracer: Tracer) -> None:
    loader = loader_of(24, shuffle=True, num_workers=2, persistent_workers=True)
    over(truth, tracer, loader, epochs=3)


def workers_watched(truth: Truth, tracer: Tracer) -> None:
    """The workers stay, the generator that watches them does not."""
    loader = loader_of(24, num_workers=1, persistent_workers=True)
    over(truth, tracer, loader, given=False, watched=True)


def workers_started_before(truth: Truth, tracer: Tracer) -> None:
    """The workers had been started: what they draw may be unknown, if a note says so."""
    loader = loader_of(24, num_workers=1, persistent_workers=True)
    for index, _, _ in loader:
        truth.keep("before", index)
    over(truth, tracer, loader)
    truth.quiet = False
    for step in truth.steps:
        step.lacks = {"batches", "ids"}


def mapped(truth: Truth, tracer: Tracer) -> None:
    over(truth, tracer, custom.Mapped(Samples(24), batch_size=4, shuffle=True))


def overridden(truth: Truth, tracer: Tracer) -> None:
    """The ids are those of the whole batch, of which the loader's user sees half."""
    loader = custom.Overridden(Samples(24), batch_size=4)
    over(truth, tracer, loader, named=lambda index: tuple(int(index[0]) + k for k in range(4)))


def resumable(truth: Truth, tracer: Tracer) -> None:
    """A loader with an iterator of its own, resumed in the middle of its first epoch."""
    run, loader = Training(truth), custom.Resumable(Samples(40), batch_size=4)
    loader.start = 3
    with tracer(run.model, loader=loader):
        for _ in range(2):
            for index, x, y in loader:
                k = int(index[0]) // 4
                run.step(x, y, (None, k, ids(index)))
                truth.keep("position", torch.tensor(loader.position))
    for step in truth.steps:
        step.lacks = {"batches", "ids"}
    truth.quiet = False
    run.finish(loader=loader, batch=x)


def skipped_first(truth: Truth, tracer: Tracer) -> None:
    """Resuming by drawing and dropping the first batches."""
    run, loader = Training(truth), loader_of(60)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in itertools.islice(enumerate(loader), 5, None):
            run.step(x, y, (0, k, ids(index)))
    truth.may_lack_batches()
    run.finish(loader=loader, batch=x)


def skipping_sampler(truth: Truth, tracer: Tracer) -> None:
    """Resuming with a loader whose sampler leaves the first batches out."""
    whole = loader_of(60)
    sampler: Any = custom.SkipFirst(whole.batch_sampler, 5)
    over(truth, tracer, DataLoader(whole.dataset, batch_sampler=sampler))


def stream(truth: Truth, tracer: Tracer) -> None:
    """An iterable dataset: its samples have no numbers."""
    loader = DataLoader(custom.Stream(24), batch_size=4)
    over(truth, tracer, loader, named=lambda index: None)


def stream_with_ids(truth: Truth, tracer: Tracer) -> None:
    """The user's own ids, out of the batch."""
    loader = DataLoader(custom.Stream(24), batch_size=4)
    over(truth, tracer, loader, sample_ids=lambda batch: batch[0])


def stream_of_workers(truth: Truth, tracer: Tracer) -> None:
    loader = DataLoader(custom.Stream(12), batch_size=4, num_workers=1)
    over(truth, tracer, loader, named=lambda index: None)


def batches_as(truth: Truth, tracer: Tracer, make: Callable[[list[int]], Any]) -> None:
    """A batch sampler that is a list of what `make` makes of a list of indices."""
    order = torch.randperm(24).tolist()
    sampler = [make(order[k : k + 4]) for k in range(0, 24, 4)]
    over(truth, tracer, DataLoader(Samples(24), batch_sampler=sampler))


def batches_as_tensors(truth: Truth, tracer: Tracer) -> None:
    batches_as(truth, tracer, torch.tensor)


def batches_as_arrays(truth: Truth, tracer: Tracer) -> None:
    batches_as(truth, tracer, np.array)


def batches_as_numpy_numbers(truth: Truth, tracer: Tracer) -> None:
    batches_as(truth, tracer, lambda some: [np.int64(k) for k in some])


def batches_as_ranges(truth: Truth, tracer: Tracer) -> None:
    sampler: Any = [range(k, k + 4) for k in range(0, 24, 4)]
    over(truth, tracer, DataLoader(Samples(24), batch_sampler=sampler))


def names_as_indices(truth: Truth, tracer: Tracer) -> None:
    """A dataset of named samples."""
    data = custom.Named(24)
    sampler: Any = torch.utils.data.SubsetRandomSampler(data.names)  # type: ignore[arg-type]
    over(truth, tracer, DataLoader(data, batch_size=4, sampler=sampler), named=named)


def whole_batches(truth: Truth, tracer: Tracer) -> None:
    """No batching: an index of the dataset is a batch."""
    loader: Any = DataLoader([Samples(24)[4 * k : 4 * k + 4] for k in range(6)], batch_size=None)  # type: ignore[arg-type]
    over(truth, tracer, loader, named=lambda index: (int(index[0]) // 4,))


def collated(truth: Truth, tracer: Tracer) -> None:
    loader = loader_of(24, shuffle=True, collate_fn=custom.paired)
    over(truth, tracer, loader)


def tensor_watched(truth: Truth, tracer: Tracer) -> None:
    """`trace.batches` over a plain tensor."""
    run, inputs = Training(truth), torch.randn(12, 5, 6)
    with tracer(run.model) as trace:
        for k, x in enumerate(trace.batches(inputs)):
            run.step(x, torch.ones(5, 1), (0, k, None))
    run.finish(batch=x)


LOOPS = (
    nobody_told,
    watched,
    watched_and_given,
    broken_off,
    one_ahead,
    one_ahead_untold,
    in_a_thread,
    workers,
    workers_watched,
    workers_started_before,
    mapped,
    overridden,
    resumable,
    skipped_first,
    skipping_sampler,
    stream,
    stream_with_ids,
    stream_of_workers,
    batches_as_tensors,
    batches_as_arrays,
    batches_as_numpy_numbers,
    batches_as_ranges,
    names_as_indices,
    whole_batches,
    collated,
    tensor_watched,
)
