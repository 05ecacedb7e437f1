"""Where steps begin and end, and that an open one is bounded."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from driven import Driven
from torch import Tensor, nn

from gradtrace import Trace, gradtrace
from gradtrace.collect import borders, clipping, outputs
from gradtrace.handover import step as steps
from gradtrace.sampling import Due, Sampling


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def backward(model: nn.Module) -> None:
    model(torch.randn(3, 4)).square().mean().backward()


def opened(trace: Trace) -> Any:
    assert trace._wiring is not None
    return trace._wiring.collector


def noted(trace: Trace, words: str) -> bool:
    return any(words in note.message for note in trace.notes)


def test_only_trace_step_ends_a_step_once_it_was_called() -> None:
    """Three steps of an optimizer between two calls are one record, with all that led to them."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        trace.step()  # of nothing, but from here on it says where steps end
        for k in range(12):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
            if k % 3 == 2:
                trace.step()
    assert [(len(s.losses), len(s.lr)) for s in trace.steps] == [(3, 3)] * 4
    assert trace.notes == []


@pytest.mark.parametrize("by", ["trace.step()", "step_after"])
def test_a_step_that_nothing_ends_is_closed(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is becomes a record, a note says so, and no more than so many pieces wait."""
    monkeypatch.setattr(borders, "MOST", 8)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    last = torch.optim.SGD(model.parameters(), lr=0.1)
    most = 0
    with gradtrace(model, directory=None, step_after=None if by[0] == "t" else last) as trace:
        if by == "trace.step()":
            trace.step()
        for _ in range(30):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
            most = max(most, len(opened(trace).borders.pieces))
    assert [len(step.losses) for step in trace.steps] == [8, 8, 8, 6] and most < 8
    assert noted(trace, "nothing has ended the step") and noted(trace, "call trace.step() where")


def test_pieces_do_not_make_the_next_ones_dear() -> None:
    """With a thousand pieces open a turn of the loop costs what it did with ten."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    last = torch.optim.SGD(model.parameters(), lr=0.1)
    took = []
    with gradtrace(model, directory=None, step_after=last) as trace:
        for _ in range(borders.MOST - 10):
            start = time.perf_counter()
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
            took.append(time.perf_counter() - start)
        assert len(opened(trace).borders.pieces) == borders.MOST - 10
    # The quickest of many: what a busy machine adds is left out.
    assert min(took[-200:]) < 2 * min(took[20:220])


def test_thrown_away_gradients_are_forgotten_by_every_piece_once() -> None:
    """What a piece has read of gradients that are another's to use counts no more once."""
    model = net()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    last = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with gradtrace(model, directory=None, step_after=last) as trace:
        for _ in range(5):
            backward(model)
            first.step()
            model.zero_grad()
        voids = [len(piece.step.void) for piece in opened(trace).borders.pieces]
        backward(model)
        last.step()
    assert voids == [1] * 5
    [record] = trace.steps
    assert record.gradients is not None
    truth = dict(model.named_parameters())["2.weight"].grad
    assert truth is not None
    assert record.gradients["2.weight", "norm"] == pytest.approx(float(truth.norm()), rel=1e-5)


@pytest.mark.parametrize("value", [False, True], ids=["by norm", "by value"])
@pytest.mark.parametrize("partly", [False, True], ids=["added up", "partly zeroed"])
def test_a_sum_that_is_clipped_again_and_again_is_bounded(
    value: bool, partly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables and calls do not pile up, and the numbers are those of the gradients that were used.

    Readings that later ones have replaced are let go; those of a layer that was read once are not.
    """
    monkeypatch.setattr(steps, "MOST_TABLES", 16)
    monkeypatch.setattr(clipping, "MOST", 8)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    some = model[2].parameters
    truth = []
    with gradtrace(model, directory=None) as trace:
        opened(trace).open.crowded = 16
        for k in range(100):
            backward(model)
            if k == 99:
                truth = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
            if value:
                nn.utils.clip_grad_value_(some(), 1e-4)
            else:
                nn.utils.clip_grad_norm_(some(), 1e-4)
            if partly and k < 99:
                model[2].zero_grad()
            collected = opened(trace).open
            assert len(collected.tables) <= 40 and len(collected.clips) <= 8
            assert len(collected.void) <= 1 and len(collected.covered) <= 40
        optimizer.step()
    [record] = trace.steps
    assert record.gradients is not None
    assert record.gradients.column("norm").tolist() == pytest.approx(truth, rel=1e-5)
    assert noted(trace, "gradients were clipped more than 8 times in one step")


def test_forwards_that_lead_to_nothing_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation with gradients on measures so many outputs, and a step with them says so."""
    monkeypatch.setattr(outputs, "MOST", 10)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        opened(trace).borders.measure_anew()
        for _ in range(20):
            model(torch.randn(3, 4))
        assert len(opened(trace).outputs.activations._positions) == 10
        assert trace.notes == []
        backward(model)
        optimizer.step()
    assert noted(trace, "more than 10 outputs of modules were seen in one step")


def test_an_optimizer_that_torch_does_not_know_leaves_no_trail() -> None:
    """Thousands of backwards whose gradients are let go: what is held does not grow."""
    model = net()
    held = []
    with gradtrace(model, directory=None) as trace:
        for k in range(2000):
            backward(model)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(1e-3 * parameter.grad)
                    parameter.grad = None
            if k in (500, 1999):
                collector = opened(trace)
                now = collector.open
                held.append(
                    [
                        len(x)
                        for x in (
                            *(now.tables, now.clips, now.void, now.parts, now.lost, now.covered),
                            *(collector._ledger._sums, collector.uses._discards._lost),
                            collector.outputs.activations._positions,
                        )
                    ]
                )
    assert held[0] == held[1] and sum(held[0]) < 300


def two() -> tuple[nn.ModuleList, list[torch.optim.SGD]]:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    return model, [torch.optim.SGD(half.parameters(), lr=0.1) for half in model]


def loss_of(module: nn.Module) -> Tensor:
    return torch.stack([p.square().sum() for p in module.parameters()]).sum()


def test_who_measures_outputs_is_told_of_each_piece() -> None:
    """Of the present one when it begins to listen, and of what each later one is to measure."""
    model, [optimizer, _] = two()
    driven = Driven(model[0], Sampling(activations=2, first=0))
    told: list[Due] = []
    driven.collector.borders.on_open(told.append)
    for _ in range(3):
        driven.backward(loss_of(model[0]))
        driven.step(optimizer)
    assert [due.activations for due in told] == [True, False, True, False]


def test_optimizers_of_one_backward_share_a_piece() -> None:
    """However many there are, one step has the backward, once."""
    model, optimizers = two()
    driven = Driven(model)
    for _ in range(3):
        driven.backward(loss_of(model))
        for optimizer in optimizers:
            driven.step(optimizer)
        model.zero_grad()
    assert driven.collector.borders.pieces == []
    assert [(len(r.losses), len(r.lr)) for r in driven.records()] == [(1, 2)] * 3


def test_a_piece_that_may_be_of_the_step_is_waited_for() -> None:
    """Two optimizers in turn: after the first of them the step is not over."""
    model, optimizers = two()
    driven = Driven(model)
    for _ in range(2):
        for at, (half, optimizer) in enumerate(zip(model, optimizers, strict=True)):
            driven.backward(loss_of(half))
            driven.step(optimizer)
            model.zero_grad()
            if at == 0:
                assert len(driven.collector.borders.pieces) == 1
                assert driven.collector.borders.before is not None
    driven.collector.finish()
    assert [(len(r.losses), len(r.lr)) for r in driven.records()] == [(2, 2)] * 2


def test_measuring_may_begin_anew() -> None:
    """What was summed up of a forward that came to nothing is gone."""
    model, [optimizer, _] = two()
    driven = Driven(model[0])
    driven.collector.outputs.module_names.append("0")
    driven.collector.outputs.activations.add(0, torch.full((3,), 7.0))
    driven.collector.borders.measure_anew()
    driven.collector.outputs.activations.add(0, torch.full((3,), 2.0))
    driven.backward(loss_of(model[0]))
    driven.step(optimizer)
    [record] = driven.records()
    assert record.activations is not None and record.activations["0", "max_abs"] == 2.0
