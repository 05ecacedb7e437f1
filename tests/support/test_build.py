"""Built records are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from build import LAYERS, batch, clip, healthy, note, run_info, skipped, spike, step, table

from gradtrace.records import UPDATE_COLUMNS


def test_fields_are_those_given() -> None:
    """What is given stands in the record, over what would be filled in."""
    assert step(3).step == 3 and step(3).time == 3.0 and step(3).loss is None
    assert step(3, time=5.0, loss=1.5).loss == 1.5
    for make in (spike, skipped, note):
        assert make(4).step == 4 and make(4, time=9.0, message="mine").message == "mine"
    assert run_info("x", started=4.0).started == 4.0


def test_tables_are_zero_but_for_the_columns_given() -> None:
    """One value for all layers or one for each; a column that is none raises."""
    made = table("ab", norm=[1.0, 2.0], nonfinite=3)
    assert made.names == ("a", "b")
    assert made.column("norm").tolist() == [1.0, 2.0]
    assert made.column("nonfinite").tolist() == [3.0, 3.0]
    assert not np.any(made.values[:, 1:5])
    assert table("ab", UPDATE_COLUMNS, ratio=0.5).column("ratio").tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="not in tuple"):
        table("ab", UPDATE_COLUMNS, mean=0.5)
    with pytest.raises(ValueError, match="broadcast"):
        table("ab", norm=[1.0, 2.0, 3.0])


def test_healthy_steps_agree_with_themselves() -> None:
    """The loss is the mean of its parts, batches are numbered, and values wobble a little."""
    steps = [healthy(number, losses=(1.0, 4.0)) for number in range(120)]
    assert all(one.loss == 2.5 for one in steps)
    norms = [one.grad_norm or math.nan for one in steps]
    assert 0.94 < min(norms) < 0.96 and 1.04 < max(norms) < 1.06
    assert [one.batches[0].epoch for one in steps] == [number // 50 for number in range(120)]
    assert [one.batches[0].batch_index for one in steps] == [number % 50 for number in range(120)]
    bad = healthy(0, layers=[1, 2, 3], bad=7).gradients
    assert bad is not None and bad.names == LAYERS
    assert bad[LAYERS[0], "nonfinite"] == 7 and bad[LAYERS[2], "norm"] == 3


def test_clips_and_batches_follow_their_numbers() -> None:
    """A coefficient is threshold over norm and never above 1."""
    assert clip(1.0, 4.0).coefficient == 0.25 and clip(1.0, 4.0).norm_after == 1.0
    assert clip(1.0, 0.5).norm_after == 0.5 and not clip(1.0, 0.5).clipped
    assert not clip(1.0, 0.0).clipped
    assert batch(7, "ab", per_epoch=5).sample_ids == ("a", "b")
    assert (batch(7, per_epoch=5).epoch, batch(7, per_epoch=5).batch_index) == (1, 2)
