"""Loaders of other packages, against the packages themselves where they are installed.

Nothing here depends on them, so their absence is no fault, in CI neither: the zoo has loaders that
do the same (`zoo.custom`).
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

import pytest
from zoo.compare import Seen, differences
from zoo.parts import Samples, Training, ids, loader_of
from zoo.tracing import PLANS, Tracer, forced
from zoo.truth import Truth

pytestmark = pytest.mark.parametrize("plan", PLANS)


def real(package: str) -> pytest.MarkDecorator:
    """Runs a test only where the package is there."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is nobody's extra")


def epochs(loader: Any, plan: str, *, given: Any = None, lacks: tuple[int, ...] = ()) -> list[str]:
    """Two epochs over a loader; what the trace says that is not so."""
    truth, tracer = Truth(), Tracer(plan)
    run = Training(truth)
    with forced(plan), tracer(run.model, loader=given or loader):
        for epoch in range(2):
            for k, (index, x, y) in enumerate(loader):
                run.step(x, y, (epoch, k, ids(index)))
    if lacks:
        truth.may_lack_batches(*lacks)
    return differences(truth, Seen.of(tracer.traces[0]))


@real("torchdata")
def test_a_stateful_loader(plan: str) -> None:
    """Torchdata's loader, resumed in the middle, has right batches, or none and a note."""
    make = importlib.import_module("torchdata.stateful_dataloader").StatefulDataLoader
    assert epochs(make(Samples(24), batch_size=4, shuffle=True), plan) == []
    first = make(Samples(40), batch_size=4)
    for k, _ in enumerate(first):
        if k == 2:
            break
    loader = make(Samples(40), batch_size=4)
    loader.load_state_dict(first.state_dict())
    truth, tracer = Truth(), Tracer(plan)
    run = Training(truth)
    with forced(plan), tracer(run.model, loader=loader):
        for index, x, y in loader:
            run.step(x, y, (None, int(index[0]) // 4, ids(index)))
    seen = Seen.of(tracer.traces[0])
    told = [record.batches[0].sample_ids for record in seen.steps if record.batches]
    expected = [step.batches[0][2] for step in truth.steps]
    assert len(seen.steps) == 7 and told in (expected, [None] * 7, [])
    assert told == expected or seen.notes


@real("torch_geometric")
def test_a_loader_of_graphs(plan: str) -> None:
    """PyG's loader of graphs: the ids are those of the graphs in the batch."""
    data = importlib.import_module("torch_geometric.data")
    make = importlib.import_module("torch_geometric.loader").DataLoader
    samples = Samples(24)
    graphs = [
        data.Data(x=x[None], y=y[None], sample=index)
        for index, x, y in (samples[k] for k in range(24))
    ]
    truth, tracer = Truth(), Tracer(plan)
    run, loader = Training(truth), make(graphs, batch_size=4, shuffle=True)
    with forced(plan), tracer(run.model, loader=loader):
        for epoch in range(2):
            for k, batch in enumerate(loader):
                run.step(batch.x, batch.y, (epoch, k, ids(batch.sample)))
    assert differences(truth, Seen.of(tracer.traces[0])) == []


@real("accelerate")
def test_a_prepared_loader(plan: str) -> None:
    """Accelerate's prepared loader, which fetches one ahead: all steps but the first are right."""
    accelerate = importlib.import_module("accelerate")
    prepared = accelerate.Accelerator(cpu=True).prepare(loader_of(24))
    assert epochs(prepared, plan, lacks=(0,)) == []
