"""Spike events: what they know of the step, the batch, the layers, and of the step before."""

from __future__ import annotations

import json

import numpy as np
import pytest
from memory import sizes
from spike_records import ORDER, detector, record, run

from gradtrace.detect.spikes.detector import SpikeDetector, latest_spikes
from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.records import (
    MOMENT_COLUMNS,
    LayerTable,
    LevelShift,
    Spike,
    StepRecord,
)
from gradtrace.runlog.eventlines import event_line, parse_event


def test_a_spike_tells_its_batch_its_layers_and_the_batch_before() -> None:
    """Everything the step knew, layers by their own rise, in forward and backward order."""
    records = [record(step) for step in range(120)]
    records[100] = record(100, norm=9.0, layers=[0.5, 8.0, 3.0])
    [spike] = run(detector(), records)
    assert isinstance(spike, Spike)
    assert (spike.step, spike.signal, spike.duration) == (100, "grad_norm", 1)
    assert spike.value == records[100].grad_norm
    assert spike.ratio == spike.value / spike.baseline and 8 < spike.ratio < 10
    assert spike.score > 1
    assert spike.batches == records[100].batches
    assert spike.previous_batches == records[99].batches
    assert [rise.name for rise in spike.layers] == ["block.weight", "head.weight"]
    assert 15 < spike.layers[0].ratio < 17
    assert (spike.first_forward, spike.first_backward) == ("block.weight", "head.weight")
    assert spike.lr == (0.1,) and spike.seconds == 0.1
    assert spike.suspect == "batch"
    assert "block.weight rose most" in spike.message


def test_neighbouring_steps_are_one_spike_told_again_when_it_has_ended() -> None:
    """At once with duration 1, later with the whole; each spike once in `latest_spikes`."""
    records = [record(step) for step in range(140)]
    for step in (100, 101, 103):
        records[step] = record(step, norm=9.0)
    found = detector(SpikeRule(cooldown=3))
    told = [(one.step, found.update(one)) for one in records]
    events = [(at, event) for at, some in told for event in some]
    assert [(at, e.step) for at, e in events] == [(100, 100), (107, 100)]
    spikes = [e for _, e in events if isinstance(e, Spike)]
    assert [s.duration for s in spikes] == [1, 4]
    assert latest_spikes(spikes) == [spikes[1]]


def test_a_spike_at_the_very_end_is_told_whole() -> None:
    """The run ends before the spike does."""
    records = [record(step) for step in range(102)]
    records[100] = record(100, norm=9.0)
    records[101] = record(101, norm=9.0)
    assert [e.duration for e in run(detector(), records) if isinstance(e, Spike)] == [1, 2]


def test_a_lasting_level_is_its_own_event() -> None:
    """One spike where it begins, one LevelShift when it is accepted, nothing after."""
    records = [record(s, norm=1.0 if s < 100 else 6.0) for s in range(200)]
    events = run(detector(SpikeRule(patience=10)), records)
    assert [type(e) for e in events] == [Spike, LevelShift]
    shift = events[1]
    assert isinstance(shift, LevelShift)
    assert (shift.step, shift.signal) == (109, "grad_norm")
    assert 0.8 < shift.before < 1.2 and 5 < shift.after < 7


def test_only_asked_for_signals_are_watched() -> None:
    """With signals=("loss",) a norm's spike is none, and layers=False names none."""
    records = [record(step) for step in range(120)]
    records[100] = record(100, loss=9.0, norm=9.0, layers=[8.0, 8.0, 8.0])
    [spike] = run(detector(SpikeRule(signals=("loss",), layers=False)), records)
    assert isinstance(spike, Spike)
    assert spike.signal == "loss" and spike.layers == ()


def test_a_burst_is_asked_for_at_once() -> None:
    """`on_alarm` hears of the first step of each spike."""
    heard: list[int] = []
    found = SpikeDetector(SpikeRule(), ORDER, on_alarm=heard.append)
    records = [record(step) for step in range(120)]
    records[100] = record(100, norm=9.0)
    records[101] = record(101, norm=9.0)
    run(found, records)
    assert heard == [100]


def test_the_update_before_is_suspected_where_it_was_violent() -> None:
    """A loss spike after an unclipped norm spike is put down to that update."""
    records = [record(step) for step in range(120)]
    records[99] = record(99, norm=30.0)
    records[100] = record(100, loss=20.0)
    spikes = [e for e in run(detector(), records) if isinstance(e, Spike)]
    assert [(s.step, s.signal, s.suspect) for s in spikes] == [
        (99, "grad_norm", "batch"),
        (100, "loss", "update"),
    ]
    assert "update before" in [cause.kind for cause in spikes[1].causes]


def test_micro_batches_tell_batch_and_update_apart() -> None:
    """One of four losses high: that batch. All four high: the weights."""
    records = [record(s, losses=(2.0, 2.1, 1.9, 2.0)) for s in range(130)]
    records[100] = record(100, losses=(2.0, 2.0, 30.0, 2.0))
    records[120] = record(120, losses=(9.0, 9.0, 9.0, 9.5))
    one, all_ = (e for e in run(detector(), records) if isinstance(e, Spike))
    assert (one.suspect, one.micro_batch) == ("batch", 2)
    assert all_.suspect == "update"


def test_an_event_survives_the_disk() -> None:
    """What is read back from its line is equal, causes and all."""
    records = [record(step) for step in range(260)]
    for step in (100, 150, 200):
        records[step] = record(step, norm=9.0, ids=(7, step), layers=[9.0, 9.0, 0.5])
    records[250] = record(250, norm=9.0, ids=(7, 8), bad=3)
    events = run(detector(), records)
    assert len(events) == 4
    for event in events:
        assert parse_event(event_line(event)) == event


def test_a_resumed_detector_flags_the_same() -> None:
    """Stopped at any step and continued from its state through JSON."""
    records = [record(step) for step in range(300)]
    for step in (110, 170, 230):
        records[step] = record(step, norm=4.0, loss=7.0)
    whole = {(e.step, e.signal) for e in run(detector(), records) if isinstance(e, Spike)}
    assert len(whole) == 6
    for stop in (20, 111, 200):
        first, second = detector(), detector()
        events = run(first, records[:stop])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        events += run(second, records[stop:])
        assert {(e.step, e.signal) for e in events if isinstance(e, Spike)} == whole


def test_new_and_missing_layers_do_no_harm() -> None:
    """Layers may come and go; a layer is compared once it has been seen often enough."""
    records = [record(step) for step in range(120)]
    other = LayerTable(
        ("block.weight", "new.weight"), np.full((2, len(MOMENT_COLUMNS)), 8.0), MOMENT_COLUMNS
    )
    spiked = record(100, norm=9.0)
    records[100] = StepRecord(
        step=100, time=100.0, loss=2.0, losses=(2.0,), grad_norm=spiked.grad_norm, gradients=other
    )
    [spike] = run(detector(), records)
    assert isinstance(spike, Spike) and spike.layers == ()


@pytest.mark.slow
def test_memory_stays_bounded() -> None:
    """After 24,000 steps with spikes and NaN the detector holds what it held after 12,000.

    tests/benchmarks/memory.py shows the same over a million.
    """
    (_, _, before), (_, spikes, after) = sizes(24_000, 12_000)
    assert spikes > 40
    assert after < 1.2 * before
