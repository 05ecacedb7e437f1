"""A whole trace: its spikes, what is kept around them, how it starts and how it ends."""

from __future__ import annotations

import gc
import json
import math
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from spiking import dataset, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Sampling, SkippedStep, Spike, SpikeFiles, SpikeRule, gradtrace, load_run


def test_spikes_know_the_samples(tmp_path: Path) -> None:
    """Each visit of the poisoned sample is a spike whose batch holds it; nothing else is one."""
    _, trace = train(dataset(77), tmp_path, epochs=4)
    steps = {spike.step for spike in trace.spikes}
    visits = {s.step for s in trace.steps if 77 in (s.batches[0].sample_ids or ())}
    assert steps == {step for step in visits if step >= 20}
    for spike in trace.spikes:
        assert 77 in (spike.batches[0].sample_ids or ())
        assert spike.batches[0].epoch == spike.step // 50
        assert spike.batches[0].batch_index == spike.step % 50
        assert spike.suspect == "batch" or spike.signal != "loss"


def test_callbacks_run_beside_the_loop(tmp_path: Path) -> None:
    """Each gets every spike once, in the background thread, in order."""
    heard: list[tuple[int, str]] = []
    threads: set[int] = set()

    def callback(spike: Spike) -> None:
        heard.append((spike.step, spike.signal))
        threads.add(threading.get_ident())

    _, trace = train(
        dataset(77), tmp_path, epochs=3, on_spike=[callback, SpikeFiles(tmp_path / "spikes")]
    )
    assert heard == [(spike.step, spike.signal) for spike in trace.spikes] and heard
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert len(list((tmp_path / "spikes").glob("*.json"))) == len(heard)


@pytest.mark.swallows
def test_a_callback_that_raises_costs_nothing(tmp_path: Path) -> None:
    """It is noted, the others are called, and training ends as it would have."""
    heard: list[int] = []

    def broken(spike: Spike) -> None:
        raise RuntimeError("no network")

    model, trace = train(
        dataset(77), tmp_path, epochs=3, on_spike=[broken, lambda spike: heard.append(spike.step)]
    )
    bare, _ = train(dataset(77), None, epochs=3, spikes=None)
    assert heard == [spike.step for spike in trace.spikes] and heard
    assert any("on_spike" in note.message for note in trace.notes)
    for mine, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_spike_starts_a_burst(tmp_path: Path) -> None:
    """Everything is measured on some steps after it, though activations were not due."""
    sampling = Sampling(activations=10_000, updates=10_000, first=0, burst=5)

    def wait(trace: Any, step: int) -> None:
        trace.flush()  # so that the burst is asked for before the next step

    _, trace = train(dataset(77), tmp_path, epochs=2, sampling=sampling, during=wait)
    first = min(spike.step for spike in trace.spikes)
    full = [s.step for s in trace.steps if s.activations is not None]
    # The step after the spike may be under way when the background thread finds it.
    assert full[:6] in ([0, *range(first + k, first + k + 5)] for k in (1, 2))


@pytest.mark.slow
def test_the_steps_around_a_spike_are_kept(tmp_path: Path) -> None:
    """In a run whose directory is far too small, 50 steps before and 20 after stay whole."""
    _, trace = train(dataset(77), tmp_path, epochs=40, max_bytes=1 << 20)
    assert trace.path is not None
    run = load_run(trace.path)
    kept = set(run.gradients.column("step").to_pylist())
    spikes = {spike.step for spike in run.events if isinstance(spike, Spike)}
    last = run.steps.num_rows
    for spike in spikes:
        assert set(range(max(0, spike - 50), min(last, spike + 21))) <= kept


def test_a_resumed_run_is_not_blind(tmp_path: Path) -> None:
    """Stopped and continued through JSON, it flags what an unbroken run does."""
    data = dataset(7, 77, 140, 399)
    saved: dict[str, Any] = {}

    # The run is cut where its third epoch begins: one continues, the other starts anew.
    def keep(trace: Any, step: int) -> None:
        if step == 99:
            saved.update(json.loads(json.dumps(trace.state_dict())))

    _, whole = train(data, None, epochs=3, during=keep)
    values = [s.grad_norm or 0.0 for s in whole.steps][100:]

    def replay(state: dict[str, Any] | None) -> set[tuple[int, str]]:
        parameter = torch.nn.Linear(1, 1, bias=False)
        trace = gradtrace(parameter, directory=None)
        if state is not None:
            trace.load_state_dict(state)
        with trace:
            for norm in values:
                # A loss and a gradient of exactly these values.
                weight = parameter.weight
                weight.grad = None
                (weight.sum() * norm).backward()
                with torch.no_grad():
                    trace.step()
        return {(spike.step, spike.signal) for spike in trace.spikes if spike.signal == "grad_norm"}

    expected = {
        (spike.step - 100, "grad_norm")
        for spike in whole.spikes
        if spike.signal == "grad_norm" and spike.step >= 100
    }
    assert expected and min(expected)[0] < 20
    assert replay(saved) == expected
    assert replay(None) != expected


def test_resuming_comes_before_the_first_step(tmp_path: Path) -> None:
    """A running trace takes a state until it has recorded a step; a closed one takes none."""
    model = torch.nn.Linear(1, 1)
    _, earlier = train(dataset(77), None, epochs=3)
    saved = json.loads(json.dumps(earlier.state_dict()))
    assert saved["spikes"]
    trace = gradtrace(model, directory=None).start()
    fresh = trace.state_dict()
    assert fresh != saved
    trace.load_state_dict(saved)
    assert json.loads(json.dumps(trace.state_dict())) == saved
    model(torch.ones(1, 1)).sum().backward()
    trace.step()
    with pytest.raises(RuntimeError, match="has recorded 1 steps already; expected one"):
        trace.load_state_dict(saved)
    trace.close()
    with pytest.raises(RuntimeError, match="is closed; expected a new one"):
        trace.load_state_dict(saved)
    other = gradtrace(torch.nn.Linear(1, 1), directory=None, spikes=SpikeRule(window=50))
    other.load_state_dict(fresh)  # nothing was learned yet


def test_no_rule_no_spikes(tmp_path: Path) -> None:
    """spikes=None looks for none."""
    _, trace = train(dataset(77), tmp_path, epochs=3, spikes=None)
    assert trace.spikes == [] and trace.state_dict() == {"spikes": {}}


def test_batches_are_taken_by_hand() -> None:
    """In a loop of no rhythm each step has what the loop took; outside a trace nothing is taken."""
    loader = DataLoader(TensorDataset(torch.randn(12, 2)), batch_size=2)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace = gradtrace(model, loader=loader, directory=None)
    assert not trace.take(loader)
    with trace:
        batches = list(loader)
        for count in (1, 3, 2):
            for _ in range(count):
                assert trace.take(loader, epoch=5)
                model(batches.pop(0)[0]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert not trace.take(loader)
    assert not trace.take(loader)
    found = [[(b.epoch, b.batch_index) for b in step.batches] for step in trace.steps]
    assert found == [[(5, 0)], [(5, 1), (5, 2), (5, 3)], [(5, 4), (5, 5)]]
    assert trace.notes == []


def dropping(model: nn.Module, loader: Any, *, by: str) -> Iterator[tuple[Tensor, bool]]:
    """Batches, and whether each is dropped when it is bad, in one of the ways that loops do it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x, y in loader:
        loss = (model(x) - y).square().mean()
        if by == "loss" and not torch.isfinite(loss):
            loss.backward()
            optimizer.zero_grad()
            yield loss, True
            continue
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if by == "norm" and not torch.isfinite(norm):
            optimizer.zero_grad(set_to_none=False)
            yield loss, True
            continue
        if by == "gradients" and not torch.isfinite(norm):
            for parameter in model.parameters():
                parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
        yield loss, by == "gradients" and not bool(torch.isfinite(norm))


@pytest.mark.parametrize("bad", [(25,), (0,), (39,), (3, 4, 5), (38, 39)])
@pytest.mark.parametrize("by", ["loss", "norm", "gradients"])
def test_batches_that_a_loop_drops_are_told(by: str, bad: tuple[int, ...], tmp_path: Path) -> None:
    """Each is an event with its loss, batch and samples, the last ones too; all steps are clean."""
    torch.manual_seed(0)
    inputs = torch.randn(160, 4)
    for k in bad:
        inputs[4 * k : 4 * k + 4] = math.nan
    loader = DataLoader(TensorDataset(inputs, torch.randn(160, 1)), batch_size=4)
    model = nn.Linear(4, 1)
    with gradtrace(model, loader=loader, directory=tmp_path, run="r") as trace:
        dropped = [dropped for _, dropped in dropping(model, loader, by=by)]
    assert sum(dropped) == len(bad) == trace.discarded
    events = [event for event in trace.events if isinstance(event, SkippedStep)]
    assert [event.reason for event in events] == ["discarded"] * len(bad)
    for event, k in zip(events, bad, strict=True):
        [batch] = event.batches
        assert batch.sample_ids == tuple(range(4 * k, 4 * k + 4))
        assert event.loss is not None and math.isnan(event.loss)
        assert event.norm is None or math.isnan(event.norm)
        assert f"batch {k} of epoch 0" in event.message
    for record in trace.steps:
        if by == "gradients" and not record.losses:
            assert record.grad_norm is None and record.clip is None and record.batches == ()
            continue
        assert record.loss is not None and math.isfinite(record.loss)
        assert record.grad_norm is not None and math.isfinite(record.grad_norm)
        assert len(record.batches) == 1 and record.clip is not None
    run = load_run(tmp_path / "r")
    kept = [event for event in run.events if isinstance(event, SkippedStep)]
    assert [(e.step, e.batches, e.message) for e in kept] == [
        (e.step, e.batches, e.message) for e in events
    ]
    assert run.info["summary"]["discarded"] == len(bad)


def test_what_was_looked_at_only_is_counted() -> None:
    """Two hundred backwards of a Fisher pass leave no trace in a step, and make no event."""
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    truth = []
    with gradtrace(model, directory=None) as trace:
        for k in range(20):
            for _ in range(200 if k == 10 else 0):
                model.zero_grad()
                (model(torch.randn(1, 8)).square().sum() * 40).backward()
            optimizer.zero_grad()
            loss = model(torch.randn(16, 8)).square().mean()
            loss.backward()
            truth.append(float(loss.detach()))
            optimizer.step()
    assert [record.loss for record in trace.steps] == pytest.approx(truth, rel=1e-6)
    assert all(len(record.losses) == 1 for record in trace.steps)
    assert trace.discarded == 200 and trace.events == [] and trace.notes == []


def test_the_user_says_what_ends_a_step() -> None:
    """Several critic steps and one of the maker are a step; the optimizer is not kept alive."""
    torch.manual_seed(0)
    models = {"maker": nn.Linear(2, 2), "critic": nn.Linear(2, 1)}
    make, judge = (torch.optim.SGD(m.parameters(), lr=0.1) for m in models.values())
    with gradtrace(models, directory=None, step_after=make) as trace:
        for _ in range(4):
            for _ in range(3):
                judge.zero_grad()
                models["critic"](torch.ones(1, 2)).square().sum().backward()
                judge.step()
            make.zero_grad()
            models["critic"](models["maker"](torch.ones(1, 2))).sum().backward()
            make.step()
        gone = weakref.ref(make)
        del make
        gc.collect()
        assert gone() is None
    assert [(len(s.losses), len(s.lr)) for s in trace.steps] == [(4, 4)] * 4


def test_losses_that_were_divided_are_told_undivided() -> None:
    """Accumulated as `loss / 4`, a step's loss is the mean of the losses, and its norm as it is."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    truth = []
    with gradtrace(model, directory=None) as trace:
        trace.divide(4)
        for _ in range(5):
            optimizer.zero_grad()
            losses = [model(torch.randn(3, 4)).square().mean() for _ in range(4)]
            for loss in losses:
                (loss / 4).backward()
            norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
            truth.append((float(torch.stack(losses).detach().mean()), float(norm.norm())))
            optimizer.step()
        for wrong in (0, -1, math.inf, math.nan):
            with pytest.raises(ValueError, match=r"divide\(\) got .*; expected a finite number"):
                trace.divide(wrong)
        for kind in ("4", None, True):
            with pytest.raises(TypeError, match=r"divide\(\) got .*; expected the number"):
                trace.divide(kind)  # type: ignore[arg-type]
    assert [record.loss for record in trace.steps] == pytest.approx([t[0] for t in truth], rel=1e-5)
    norms = [record.grad_norm for record in trace.steps]
    assert norms == pytest.approx([t[1] for t in truth], rel=1e-5)
    assert {part.divisor for record in trace.steps for part in record.parts} == {4.0}
    trace.divide(2)  # a closed trace takes it, and does nothing


def test_steps_without_backward_are_no_mistake() -> None:
    """A loop that computes no gradients but says where steps end and what the loss is."""
    model = nn.Linear(4, 1)
    with gradtrace(model, directory=None) as trace:
        for _ in range(8):
            with torch.no_grad():
                loss = model(torch.randn(16, 4)).square().mean()
                for parameter in model.parameters():
                    parameter.add_(1e-3 * torch.randn_like(parameter))
            trace.log(loss=loss)
            trace.step()
    assert len(trace.steps) == 8 and trace.notes == []
    assert all(record.loss is not None for record in trace.steps)
