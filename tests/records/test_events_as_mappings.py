"""What happened at a step, and how it is a mapping."""

from __future__ import annotations

import dataclasses

import pytest

from gradtrace.records import (
    EVENT_TYPES,
    BatchRef,
    Cause,
    Event,
    NonFinite,
    RunNote,
    SkippedStep,
    Spike,
    event_from_dict,
    event_to_dict,
)

SPIKE = Spike(
    step=7, time=1.0, severity="warning", message="", signal="loss",
    value=9.0, baseline=3.0, ratio=3.0, score=1.5,
)  # fmt: skip


def test_the_likely_cause_is_the_first_that_could_be_judged() -> None:
    """None where there are none, or none with enough data."""
    blind = Cause("period", "not enough data", None)
    sure, unsure = Cause("lr", "it jumped", 0.9), Cause("update", "large", 0.2)
    assert SPIKE.likely is None
    assert dataclasses.replace(SPIKE, causes=(blind,)).likely is None
    assert dataclasses.replace(SPIKE, causes=(blind, sure, unsure)).likely is sure
    assert dataclasses.replace(SPIKE, causes=(Cause("lr", "", 0.0), sure)).likely is not sure


@pytest.mark.parametrize(("suspect", "step"), [("batch", 7), ("unknown", 7), ("update", 6)])
def test_the_blamed_step_is_the_one_before_where_its_update_is_suspect(
    suspect: str, step: int
) -> None:
    """A loss is high because of its own batch or because of the update before it."""
    spike = dataclasses.replace(SPIKE, suspect=suspect, blamed=(BatchRef(0, 1, 2),))  # type: ignore[arg-type]
    assert spike.blamed_step == step


def test_a_mapping_has_the_kind_first_and_gives_the_event_back() -> None:
    """Flat, of plain values, for events whose fields are plain."""
    events: list[Event] = [
        RunNote(step=1, time=2.0, severity="info", message="m", source="loop", rank=3),
        SkippedStep(step=1, time=2.0, severity="info", message="", scale=1024.0, streak=2),
        NonFinite(
            step=1, time=2.0, severity="error", message="", count=2, layers={"a": 2},
            first_forward="a", first_backward=None,
        ),
    ]  # fmt: skip
    for event in events:
        data = event_to_dict(event)
        assert next(iter(data.items())) == ("kind", event.kind)
        assert event_from_dict(data) == event
        assert EVENT_TYPES[event.kind] is type(event)


def test_fields_of_a_newer_version_are_passed_over() -> None:
    """So that an older version reads what it knows."""
    note = RunNote(step=1, time=2.0, severity="info", message="m", source="loop")
    assert event_from_dict(event_to_dict(note) | {"mood": "good"}) == note


def test_what_is_no_event_is_told() -> None:
    """An unknown kind with those that are known; a missing field by its name."""
    with pytest.raises(ValueError, match="unknown event kind 'party'; this version reads: clip, "):
        event_from_dict({"kind": "party"})
    with pytest.raises(ValueError, match="unknown event kind None"):
        event_from_dict({})
    with pytest.raises(ValueError, match=r"event of kind 'note' lacks a field: .*'source'"):
        event_from_dict({"kind": "note", "step": 1, "time": 2.0, "severity": "info", "message": ""})
