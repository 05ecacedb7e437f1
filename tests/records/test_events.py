"""Events as mappings and back; spikes of run logs from before there was `blamed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradtrace import load_run
from gradtrace.records import BatchRef, Spike, event_from_dict, event_to_dict

BEFORE = Path(__file__).parents[1] / "data" / "before-the-move"
FIRST, SECOND, EARLIER = BatchRef(0, 6, 6), BatchRef(0, 7, 7), BatchRef(0, 5, 5)


def old_spike(**changes: object) -> dict[str, Any]:
    """What a line of an old log said of a spike, as far as its form goes."""
    values: dict[str, Any] = {"step": 3, "time": 0.0, "severity": "warning", "message": ""}
    values |= {"kind": "spike", "signal": "loss", "value": 9.0, "baseline": 1.0, "ratio": 9.0}
    values |= {"score": 2.0, "batches": (FIRST, SECOND), "previous_batches": (EARLIER,)}
    return values | changes


def test_stored_spikes_blame_the_worst_micro_batch() -> None:
    """Of the two batches of each step, that with the largest loss, as the bad list had it."""
    spikes = [event for event in load_run(BEFORE).events if isinstance(event, Spike)]
    assert {spike.step for spike in spikes} == {49, 59, 67, 78}
    for spike in spikes:
        assert spike.micro_batch is not None and len(spike.batches) == 2
        assert spike.blamed == (spike.batches[spike.micro_batch],)
        assert spike.blamed_step == spike.step


@pytest.mark.parametrize(
    ("changes", "blamed"),
    [
        ({"suspect": "update", "micro_batch": 1}, (EARLIER,)),
        ({"suspect": "batch", "micro_batch": 1}, (SECOND,)),
        ({"suspect": "unknown", "micro_batch": 0}, (FIRST,)),
        ({"suspect": "batch", "micro_batch": 2}, (FIRST, SECOND)),
        ({"suspect": "batch"}, (FIRST, SECOND)),
        ({"batches": ()}, ()),
    ],
)
def test_what_an_old_spike_blames(changes: dict[str, object], blamed: tuple[BatchRef, ...]) -> None:
    """The batches before for an update, the micro-batch's where it is one, else all."""
    spike = event_from_dict(old_spike(**changes))
    assert isinstance(spike, Spike) and spike.blamed == blamed


def test_what_a_spike_blames_itself_is_left_alone() -> None:
    """Also where that is nobody."""
    for blamed in ((), (SECOND,)):
        spike = event_from_dict(old_spike(suspect="update", micro_batch=0, blamed=blamed))
        assert isinstance(spike, Spike) and spike.blamed == blamed
        assert event_to_dict(spike)["blamed"] == tuple(map(_plain, blamed))


def _plain(batch: BatchRef) -> dict[str, object]:
    return {
        "epoch": batch.epoch,
        "batch_index": batch.batch_index,
        "ordinal": batch.ordinal,
        "sample_ids": batch.sample_ids,
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [({"kind": "nonsense"}, "unknown event kind 'nonsense'"), ({"kind": "spike"}, "lacks a field")],
)
def test_what_is_no_event_is_refused(data: dict[str, object], message: str) -> None:
    """With what is wrong about it."""
    with pytest.raises(ValueError, match=message):
        event_from_dict(data)
