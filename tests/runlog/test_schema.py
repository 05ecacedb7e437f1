"""Steps as rows of an Arrow table."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest

from gradtrace.records import (
    LAYER_TABLES,
    BatchRef,
    Clip,
    LayerTable,
    MicroBatch,
    StepRecord,
)
from gradtrace.runlog.schema import STEP_COLUMNS, row_record, step_rows, steps_batch

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
        parts=(MicroBatch(2.0, 2.0), MicroBatch(4.0, 2.0)),
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
    # Layer tables have files of their own, and what was thrown away is told by events.
    elsewhere = {*LAYER_TABLES, "discarded"}
    assert untouched == elsewhere, "a new field of StepRecord must be stored as well"


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
    assert batch.schema.names == [column.name for column in STEP_COLUMNS]
    assert [batch.column(c).to_pylist() for c in ("epoch", "batch_index", "ordinal")] == [
        [1, None],
        [2, None],
        [3, None],
    ]


ONE, TWO, THREE = (BatchRef(0, k, k, (k, k + 10)) for k in range(3))


@pytest.mark.parametrize(
    ("batches", "parts"),
    [
        ((ONE,), (MicroBatch(2.5, 1.0, (ONE,)),)),
        ((ONE, TWO), (MicroBatch(2.5, 2.0, (ONE,)), MicroBatch(None, 2.0, (TWO,)))),
        # Two loaders for one loss, a loss without a batch, and a batch after the last backward.
        ((ONE, TWO, THREE), (MicroBatch(1.0, 1.0, (ONE, TWO)), MicroBatch(3.0, 1.0, ()))),
        ((ONE, TWO, THREE), (MicroBatch(math.inf, 4.0), MicroBatch(3.0, 4.0, (ONE, TWO, THREE)))),
        ((), (MicroBatch(1.0),)),
    ],
)
def test_micro_batches_come_back_with_their_batches(
    batches: tuple[BatchRef, ...], parts: tuple[MicroBatch, ...]
) -> None:
    """Each part has its loss, its divisor and the slice of the step's batches it was made of."""
    record = StepRecord(0, 1.0, batches=batches, parts=parts)
    assert through_arrow(record) == record


def test_batches_of_micro_batches_are_not_stored_twice() -> None:
    """The `parts` column holds counts; a loss that is not finite is strict JSON."""
    parts = (MicroBatch(math.nan, 2.0, (ONE,)), MicroBatch(None, 2.0, (TWO,)))
    (row,) = step_rows(steps_batch([StepRecord(0, 1.0, batches=(ONE, TWO), parts=parts)]))
    assert json.loads(row["parts"]) == [["NaN", 2.0, 1], [None, 2.0, 1]]
    loss = row_record(row, NO_TABLES).parts[0].loss
    assert loss is not None and math.isnan(loss)


def test_a_column_that_an_older_version_lacked_is_the_default() -> None:
    """Null in any column but step and time leaves the field as a new record has it."""
    row = dict.fromkeys([column.name for column in STEP_COLUMNS])
    assert row_record(row | {"step": 3, "time": 1.0}, NO_TABLES) == StepRecord(3, 1.0)


def test_every_field_comes_from_one_column() -> None:
    """No field of a record or of its clip is restored twice, and names are not repeated."""
    assert len({column.name for column in STEP_COLUMNS}) == len(STEP_COLUMNS)
    restored = [(column.of_clip, column.field) for column in STEP_COLUMNS if column.field]
    assert len(set(restored)) == len(restored)
    # `cosine` is not kept on disk.
    assert {name for of_clip, name in restored if of_clip} == {
        field.name for field in fields(Clip) if field.compare
    }
