from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import pytest

from gradtrace.records import (
    EVENT_TYPES,
    LAYER_TABLES,
    BatchRef,
    Clip,
    Event,
    LayerTable,
    NonFinite,
    StepRecord,
)
from gradtrace.runlog.schema import (
    event_line,
    jsonable,
    parse_event,
    row_record,
    step_rows,
    steps_batch,
    to_json,
)

NO_TABLES: dict[str, LayerTable | None] = {}


def through_arrow(record: StepRecord) -> StepRecord:
    (row,) = step_rows(steps_batch([record]))
    return row_record(row, NO_TABLES)


def test_a_full_step_comes_back_equal() -> None:
    """Every field of a step but its tables survives the translation, ids with their types."""
    record = StepRecord(
        step=7,
        time=1.5,
        seconds=0.25,
        loss=3.0,
        losses=(2.0, 4.0),
        lr=(0.1, 0.2),
        grad_norm=9.0,
        clip=Clip("value", 1.0, 2.0, 0.5, 0.25, True, 3),
        batches=(
            BatchRef(0, 1, 2, (1, "1", 2**60, "é\ud800")),
            BatchRef(0, 2, 3),
            BatchRef(1, 0, 4, ()),
        ),
        scale=1024.0,
        logged={"accuracy": 0.5, "bad": math.inf, "low": -math.inf},
        rank=3,
        overhead=0.001,
        skipped=True,
        remarks=("twice", "still scaled"),
        scores={"loss": 0.5, "grad_norm": math.inf},
    )
    assert through_arrow(record) == record
    plain = StepRecord(0, 1.0)
    untouched = {
        f.name for f in fields(record) if getattr(record, f.name) == getattr(plain, f.name)
    }
    assert untouched == set(LAYER_TABLES), "a new field of StepRecord must be stored as well"


def test_an_empty_step_comes_back_equal() -> None:
    """What was not seen comes back as None or empty, not as NaN or zero."""
    assert through_arrow(StepRecord(0, 1.0)) == StepRecord(0, 1.0)


def test_nan_is_not_none() -> None:
    """NaN in scalars, lists and logged values stays NaN."""
    record = StepRecord(0, 1.0, loss=math.nan, losses=(math.nan,), logged={"a": math.nan})
    back = through_arrow(record)
    assert back.loss is not None
    assert all(map(math.isnan, (back.loss, back.losses[0], back.logged["a"])))


def test_contract_columns_come_first_and_tell_the_first_batch() -> None:
    """The steps table begins with the contract's columns; its batch columns are the first one's."""
    batches = (BatchRef(1, 2, 3), BatchRef(4, 5, 6))
    batch = steps_batch([StepRecord(0, 1.0, batches=batches), StepRecord(1, 2.0)])
    contract = [
        "step",
        "time",
        "seconds",
        "loss",
        "grad_norm",
        "lr",
        "clip_kind",
        "clip_threshold",
        "clip_coefficient",
        "clipped",
        "norm_after",
        "epoch",
        "batch_index",
        "ordinal",
        "scale",
    ]
    assert batch.schema.names[:15] == contract
    assert [batch.column(c).to_pylist() for c in ("epoch", "batch_index", "ordinal")] == [
        [1, None],
        [2, None],
        [3, None],
    ]


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


def test_anything_can_be_put_into_json() -> None:
    """Objects, odd keys, numpy numbers, cycles and a broken repr end as text, without raising."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    cycle: list[Any] = []
    cycle.append(cycle)
    value = {
        1: Broken(),
        "a": np.float32(0.5),
        "b": {
            2,
        },
        "c": (math.nan, -math.inf),
        "d": cycle,
    }
    plain = jsonable(value)
    assert plain["1"] == "<Broken>"
    assert plain["a"] == 0.5
    assert plain["c"] == ["NaN", "-Infinity"]
    assert json.loads(to_json(value)) == plain
