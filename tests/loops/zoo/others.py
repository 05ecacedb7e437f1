"""Compilers, tensors that are no plain ones, and several models or traces at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.parts import Training, ids, loader_of, mlp, squared
from zoo.tracing import Tracer
from zoo.truth import Truth


def step_compiled(truth: Truth, tracer: Tracer) -> None:
    """The whole step is one compiled function: nothing of it may be seen, if a note says so."""
    torch._dynamo.reset()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = squared(model, x, y)
        loss.backward()
        optimizer.step()
        return loss

    fast = torch.compile(step, backend="eager")
    loader = loader_of(48)
    with tracer(model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            loss = fast(x, y)
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(model)
            truth.step(optimizer)
    truth.unseen = True
    truth.note("compile")
    truth.finish(model=model, optimizer=optimizer, loader=loader, batch=x)
    torch._dynamo.reset()


def compiled(truth: Truth, tracer: Tracer, raw: bool = True) -> None:
    """The raw model is traced, a compiled wrapper trains; nothing is compiled twice."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run, loader = Training(truth), loader_of(64)
    fast: Any = torch.compile(run.model, backend="eager")
    with tracer(run.model if raw else fast, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            stance = "fail_on_recompile" if k else "default"
            with torch.compiler.set_stance(stance):
                loss = squared(fast, x, y)
            loss.backward()
            truth.backward(loss, (0, k, ids(index)))
            truth.gradients(run.model)
            run.use()
    counters = torch._dynamo.utils.counters
    truth.keep("graphs", torch.tensor(counters["stats"]["unique_graphs"]))
    truth.keep("breaks", torch.tensor(sum(counters["graph_break"].values())))
    truth.note("compile")
    truth.finish(model=run.model, optimizer=run.optimizer, loader=loader, batch=x)
    torch._dynamo.reset()


def compiled_traced(truth: Truth, tracer: Tracer) -> None:
    """The compiled wrapper itself is traced."""
    compiled(truth, tracer, raw=False)


def two_models(truth: Truth, tracer: Tracer) -> None:
    """One loss reaches two models, each with an optimizer; only one is traced."""
    run, other = Training(truth), mlp()
    theirs = torch.optim.Adam(other.parameters(), lr=1e-2)
    with tracer(run.model):
        for _ in range(15):
            x, y = torch.randn(5, 6), torch.randn(5, 1)
            loss = squared(lambda x: run.model(x) + other(x), x, y)
            loss.backward()
            truth.backward(loss)
            truth.gradients(run.model)
            nn.utils.clip_grad_norm_(other.parameters(), 0.1)
            theirs.step()
            theirs.zero_grad()
            run.use()
    run.finish(other=other, theirs=theirs)


def nested(truth: Truth, tracer: Tracer) -> None:
    """A trace of another model inside, with a loader of its own."""
    run, loader = Training(truth), loader_of(48)
    with tracer(run.model, loader=loader):
        for k, (index, x, y) in enumerate(loader):
            run.step(x, y, (0, k, ids(index)))
            if k == 5:
                inner, second = Training(truth.another()), loader_of(20)
                with tracer(inner.model, loader=second):
                    for i, (index, x, y) in enumerate(second):
                        inner.step(x, y, (0, i, ids(index)))
    run.finish(model_inside=inner.model, loaders=[loader, second], batch=x)


def twice_at_once(truth: Truth, tracer: Tracer) -> None:
    """Two traces of one model, the second for a part of the time."""
    run, loader = Training(truth), loader_of(48)
    second = truth.another()
    with tracer(run.model, loader=loader):
        for epoch in range(2):
            if epoch == 0:
                for k, (index, x, y) in enumerate(loader):
                    run.step(x, y, (0, k, ids(index)))
                continue
            with tracer(run.model, loader=loader):
                for k, (index, x, y) in enumerate(loader):
                    run.step(x, y, (1, k, ids(index)))
                    first = truth.steps[-1]
                    second.steps.append(
                        type(first)(**{**vars(first), "batches": ((0, k, ids(index)),)})
                    )
    run.finish(loader=loader, batch=x)


def one_after_the_other(truth: Truth, tracer: Tracer) -> None:
    """A trace for each epoch, over one model, optimizer and loader."""
    run, loader = Training(truth), loader_of(24)
    for epoch in range(3):
        run.truth = truth if epoch == 0 else truth.another()
        with tracer(run.model, loader=loader):
            for k, (index, x, y) in enumerate(loader):
                run.step(x, y, (0, k, ids(index)))
    run.truth = truth
    run.finish(loader=loader, batch=x)


def raised(truth: Truth, tracer: Tracer) -> None:
    """An exception of the loop's own ends the trace; training goes on without."""
    run, loader = Training(truth), loader_of(48)
    try:
        with tracer(run.model, loader=loader):
            for k, (index, x, y) in enumerate(loader):
                run.step(x, y, (0, k, ids(index)))
                if k == 7:
                    raise KeyError("mine")
    except KeyError as error:
        truth.keep("caught", torch.tensor(str(error) == "'mine'"))
    run.truth = Truth()  # nobody watches any more
    for _, x, y in loader:
        run.step(x, y)
    truth.finish(model=run.model, optimizer=run.optimizer, loader=loader, batch=x)


LOOPS = (
    step_compiled,
    compiled,
    compiled_traced,
    two_models,
    nested,
    twice_at_once,
    one_after_the_other,
    raised,
)
