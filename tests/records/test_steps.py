"""One step, and what it was made of."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gradtrace.records import (
    LAYER_TABLES,
    BatchRef,
    Clip,
    LayerHistograms,
    LayerTable,
    MicroBatch,
    StepRecord,
    table_bytes,
    without_histograms,
)
from gradtrace.records.histograms import BINS

TABLE = LayerTable(("a", "b"), np.zeros((2, 6)), ("norm", "mean", "std", "max_abs", "z", "n"))
HISTOGRAMS = LayerHistograms(("a",), np.zeros((1, BINS), np.int64), np.ones(1))


def test_a_step_is_plain_and_frozen() -> None:
    """Number and time are enough; the rest says that nothing was seen; nothing can be set."""
    record = StepRecord(3, 1.5)
    assert (record.loss, record.grad_norm, record.clip, record.scale) == (None,) * 4
    assert (record.batches, record.parts, record.losses, record.remarks) == ((),) * 4
    assert all(getattr(record, table) is None for table in LAYER_TABLES)
    assert (record.logged, record.scores, record.skipped) == ({}, {}, False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.step = 4  # type: ignore[misc]
    assert not hasattr(record, "__dict__")


def test_equal_steps_are_equal() -> None:
    """By value, tables and micro-batches included."""
    part = MicroBatch(2.0, 4.0, (BatchRef(0, 1, 2, ("doc", 3)),))
    one, same = (
        StepRecord(0, 1.0, gradients=LayerTable(("a",), np.ones((1, 1)), ("norm",)), parts=(part,))
        for _ in range(2)
    )
    assert one == same
    assert dataclasses.replace(one, parts=(MicroBatch(None, 4.0, part.batches),)) != one
    assert MicroBatch(None) == MicroBatch(None, 1.0, ())


def test_the_cosine_of_a_clip_is_not_compared() -> None:
    """It is not kept on disk, and a clip read back equals the one written."""
    assert Clip("value", 1.0, 2.0, 1.0, 0.5, True, cosine=0.9) == Clip(
        "value", 1.0, 2.0, 1.0, 0.5, True
    )
    assert math.isnan(Clip("norm", 1.0, 2.0, 1.0, 0.5, True).cosine)
    assert Clip("norm", 1.0, 2.0, 1.0, 0.5, True) != Clip("norm", 1.0, 2.0, 1.0, 0.5, True, 2)


def test_tables_are_counted_in_bytes() -> None:
    """All layer tables and the histograms."""
    assert table_bytes(StepRecord(0, 1.0)) == 0
    record = StepRecord(0, 1.0, gradients=TABLE, updates=TABLE, histograms=HISTOGRAMS)
    assert table_bytes(record) == 2 * 2 * 6 * 8 + (BINS + 1) * 8


def test_histograms_can_be_let_go() -> None:
    """The record without them and the bytes that saves; without any it is the same record."""
    record = StepRecord(0, 1.0, gradients=TABLE, histograms=HISTOGRAMS)
    less, saved = without_histograms(record)
    assert less == StepRecord(0, 1.0, gradients=TABLE) and saved == HISTOGRAMS.nbytes
    assert without_histograms(less) == (less, 0) and without_histograms(less)[0] is less
