"""Several loaders at once, copies of loaders, and batches taken by hand."""

from __future__ import annotations

import copy
import pickle

import torch
from torch.utils.data import DataLoader

from zoo import custom
from zoo.parts import Training, ids, loader_of, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


def side_by_side(truth: Truth, tracer: Tracer) -> None:
    """Two loaders in a `zip`: a step is of a batch of each."""
    run, loader, other = Training(truth), loader_of(48), loader_of(50, 5, shuffle=True)
    with tracer(run.model, loader=[loader, other]):
        for k, ((index, x, y), (more, a, b)) in enumerate(zip(loader, other, strict=False)):
            loss = squared(run.model, torch.cat([x, a]), torch.cat([y, b]))
            loss.backward()
            truth.backward(loss, (0, k, ids(index)), (0, k, ids(more)))
            truth.gradients(run.model)
            run.use()
    run.finish(loaders=[loader, other], batch=x)


def two_forwards(truth: Truth, tracer: Tracer) -> None:
    """FixMatch: a forward for a batch of each of two loaders, one backward for both."""
    run, loader, other = Training(truth), loader_of(48), loader_of(50, 5)
    with tracer(run.model, loader=[loader, other]):
        iterator = iter(other)
        for k, (index, x, y) in enumerate(loader):
            loss = squared(run.model, x, y)
            if k < 10:
                more, a, b = next(iterator)
                loss = loss + squared(run.model, a, b)
            loss.backward()
            batches = [(0, k, ids(index)), (0, k, ids(more))]
            truth.backward(loss, *batches[: 2 if k < 10 else 1])
            truth.gradients(run.model)
            run.use()
    run.finish(loaders=[loader, other], batch=x)


def pairs(truth: Truth, tracer: Tracer) -> None:
    """Two batches of one loader are drawn for each step: both, or none and a note.

    At the first step this looks as if one batch were fetched ahead.
    """
    run, loader = Training(truth), loader_of(96)
    with tracer(run.model, loader=loader):
        iterator = iter(loader)
        for k, (index, x, y) in enumerate(iterator):
            more, a, b = next(iterator)
            loss = squared(run.model, torch.cat([x, a]), torch.cat([y, b]))
            loss.backward()
            truth.backward(loss, (0, 2 * k, ids(index)), (0, 2 * k + 1, ids(more)))
            truth.gradients(run.model)
            run.truth.step(run.optimizer, lacks={"batches"})
            run.optimizer.step()
            run.optimizer.zero_grad()
    truth.quiet = False
    run.finish(loader=loader, batch=x)


def begun_again(truth: Truth, tracer: Tracer) -> None:
    """Two loaders, the shorter begun again whenever it ends; steps are counted, not epochs."""
    run, loader, other = Training(truth), loader_of(48), loader_of(20)
    with tracer(run.model, loader=[loader, other]):
        iterator, epoch = iter(other), 0
        for k, (index, x, y) in enumerate(loader):
            try:
                more, a, b = next(iterator)
            except StopIteration:
                iterator, epoch = iter(other), epoch + 1
                more, a, b = next(iterator)
            loss = squared(run.model, torch.cat([x, a]), torch.cat([y, b]))
            loss.backward()
            truth.backward(loss, (0, k, ids(index)), (epoch, k % 5, ids(more)))
            truth.gradients(run.model)
            run.use()
    run.finish(loaders=[loader, other], batch=x)


def taken_by_hand(truth: Truth, tracer: Tracer) -> None:
    """Batches are fetched all at once; the loop says which one it takes."""
    run, loader = Training(truth), loader_of(24)
    with tracer(run.model, loader=loader) as trace:
        for epoch in range(2):
            for k, (index, x, y) in enumerate(list(loader)):
                trace.take(loader, epoch=epoch + 10, batch_index=k + 100)
                run.step(x, y, (epoch + 10, k + 100, ids(index)))
    run.finish(loader=loader, batch=x)


def copied(truth: Truth, tracer: Tracer) -> None:
    """A copy with other data, and one that went through pickle, are used beside the loader."""
    run = Training(truth)
    data = custom.Values(20)
    loader = DataLoader(
        data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(7)
    )
    with tracer(run.model, loader=loader):
        for epoch in range(2):
            for k, (index, x, y) in enumerate(loader):
                run.step(x / 10, y, (epoch, k, ids(index)))
            probe = copy.deepcopy(loader)
            vars(probe)["dataset"] = custom.Values(7)
            again = pickle.loads(pickle.dumps(DataLoader(data, batch_size=5)))
            again.dataset.value = 7.0
            for other in (probe, again):
                for index, x, _ in other:
                    truth.keep("copy", index)
                    truth.keep("copy", x)
    run.finish(loader=loader, copies=[probe, again])
    for index, _, _ in probe:  # and after the trace
        truth.keep("copy", index)


def pickled_inside(truth: Truth, tracer: Tracer) -> None:
    """The very loader that is watched can be pickled, and what comes back is an ordinary one."""
    run, loader = Training(truth), DataLoader(custom.Values(40), batch_size=4)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            run.step(x / 50, y, (0, k, ids(index)))
        again = pickle.loads(pickle.dumps(loader))
        for index, _, _ in again:
            truth.keep("copy", index)
    run.finish(loader=loader, again=again, batch=x)


LOOPS = (
    side_by_side,
    two_forwards,
    pairs,
    begun_again,
    taken_by_hand,
    copied,
    pickled_inside,
)
