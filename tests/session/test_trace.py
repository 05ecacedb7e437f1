"""A whole trace: its spikes, what is kept around them, how it starts and how it ends."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from spiking import dataset, train
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Sampling, Spike, SpikeFiles, SpikeRule, gradtrace, load_run


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


def test_resuming_comes_before_the_start(tmp_path: Path) -> None:
    """A running trace takes no state."""
    trace = gradtrace(torch.nn.Linear(1, 1), directory=None).start()
    with pytest.raises(RuntimeError, match="expected a new one"):
        trace.load_state_dict(trace.state_dict())
    state = trace.state_dict()
    trace.close()
    other = gradtrace(torch.nn.Linear(1, 1), directory=None, spikes=SpikeRule(window=50))
    other.load_state_dict(state)  # nothing was learned yet


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
