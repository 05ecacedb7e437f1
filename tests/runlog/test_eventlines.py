"""Events as lines of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from gradtrace.records import EVENT_TYPES, BatchRef, Event, NonFinite, SkippedStep
from gradtrace.runlog.eventlines import event_line, parse_event


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd(Event):
    kind: ClassVar[str] = "odd"
    scores: Mapping[str, float]
    where: tuple[BatchRef, ...]
    pair: tuple[int, float] | None = None
    text: str | None = None


def test_event_fields_come_back_as_annotated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuples, batches and infinities of an event survive JSON; text that says NaN stays text."""
    monkeypatch.setitem(EVENT_TYPES, "odd", Odd)
    event = Odd(
        step=1,
        time=2.0,
        severity="info",
        message="NaN",
        scores={"loss": math.inf, "x": 1.0},
        where=(BatchRef(0, 1, 2, (3, "NaN")),),
        pair=(1, -math.inf),
        text="Infinity",
    )
    line = event_line(event)
    assert parse_event(line) == event


def test_a_skipped_step_of_before_is_read() -> None:
    """Lines from when only the scaler skipped say no reason: it was an overflow."""
    old = b'{"kind":"skipped_step","step":3,"time":1.0,"severity":"info","message":"","rank":0,'
    event = parse_event(old + b'"scale":2.0,"streak":4}')
    assert isinstance(event, SkippedStep)
    assert (event.reason, event.scale, event.streak) == ("overflow", 2.0, 4)
    assert (event.loss, event.norm, event.batches) == (None, None, ())


def test_a_discarded_batch_survives() -> None:
    """Its loss, norm and batches, whatever their values."""
    event = SkippedStep(
        step=3, time=1.0, severity="info", message="", reason="discarded", loss=math.inf,
        norm=-math.inf, batches=(BatchRef(0, 1, 2, ("a", 3)), BatchRef(1, 0, 3)),
    )  # fmt: skip
    assert parse_event(event_line(event)) == event


def test_event_lines_are_strict_json() -> None:
    """NaN in an event is written so that a strict parser reads the line, and read as NaN."""
    event = NonFinite(
        step=1, time=2.0, severity="error", message="a\nb", count=1, layers={"a": 1},
        first_forward="a", first_backward=None, loss=math.nan,
    )  # fmt: skip
    line = event_line(event)

    def refuse(text: str) -> Any:
        raise AssertionError(text)

    assert json.loads(line, parse_constant=refuse)["loss"] == "NaN"
    assert line.count(b"\n") == 1
    back = parse_event(line)
    assert isinstance(back, NonFinite)
    assert back.loss is not None
    assert math.isnan(back.loss)


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"null", b'{"kind":"new"}', b'{"kind":"note"}', b'{"kind":[]}', b"\xff"],
)
def test_foreign_lines_are_no_events(line: bytes) -> None:
    """A torn or foreign line reads as None."""
    assert parse_event(line) is None
