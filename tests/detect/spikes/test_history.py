"""What is remembered of a run: steps, spikes, rhythms, what is usual; in bounded memory."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from spike_records import record

from gradtrace.detect.spikes import history
from gradtrace.detect.spikes.history import (
    History,
    bad_values,
    ids_of,
    length_of,
    lr_ratio,
    parts_of,
    source_of,
    sources_of,
)
from gradtrace.records import (
    ACTIVATION_COLUMNS,
    MOMENT_COLUMNS,
    BatchRef,
    LayerTable,
    MicroBatch,
    StepRecord,
)

ONE, OTHER = BatchRef(0, 0, 0, ("a/1", "b/2")), BatchRef(0, 1, 1, ("a/3", 4))


def fed(*records: StepRecord) -> History:
    known = History()
    for one in records:
        known.add(one, {})
    return known


def test_the_step_before_is_the_nearest_known_one() -> None:
    """None at the first; the last of those before, also where steps are missing."""
    known = fed(record(3), record(4), record(8))
    assert known.before(3) is None
    found = known.before(8)
    assert found is not None and found.step == 4


def test_a_step_that_spiked_twice_is_remembered_once() -> None:
    """With the batches that either signal blamed, each once."""
    known = History()
    known.add_spike(5, (ONE,))
    known.add_spike(5, (ONE, OTHER))
    known.add_spike(6, ())
    assert [(past.step, past.batches) for past in known.spikes] == [(5, (ONE, OTHER)), (6, ())]


def test_rhythms_are_kept() -> None:
    """Where epochs begin, which steps were held up, and where the learning rate jumped."""
    records = [
        dataclasses.replace(record(s, lr=0.1 if s < 90 else 0.2), seconds=0.5 if s == 70 else 0.1)
        for s in range(120)
    ]
    known = fed(*records)
    assert list(known.epoch_starts) == [0, 50, 100]
    assert list(known.pauses) == [70]
    assert list(known.jumps) == [90]
    assert known.samples == 100  # 50 steps of 2


def test_sources_are_counted_by_batch_and_lengths_by_step() -> None:
    """A step of two batches, both of one source; numbers and plain names have none."""
    step = dataclasses.replace(record(0), batches=(ONE, OTHER, BatchRef(0, 2, 2, (1, "x#len=7"))))
    known = fed(step, dataclasses.replace(record(1), batches=(BatchRef(0, 3, 3, ("y#len=9",)),)))
    assert known.source_batches == {"a": 2, "b": 1}
    assert known.batches_with_sources == 2
    assert list(known.lengths) == [7, 9]


def test_what_a_loss_usually_is() -> None:
    """The median of the last steps; of its own place where that is larger; None where unknown."""
    records = [record(s, losses=(4.0, 1.0)) for s in range(10)]
    known = fed(*records)
    facts = known.add(record(10, losses=(4.0, 1.0)), {})
    assert known.usual_losses(facts) == [4.0, 2.5]
    facts = known.add(record(11, losses=(4.0, 1.0, 1.0)), {})
    assert known.usual_losses(facts) == [2.5, 2.5, 2.5]
    early = fed(*records[:4])
    assert early.usual_losses(early.add(records[4], {})) == [None, None]
    below = fed(*[record(s, losses=(-1.0, -1.0)) for s in range(9)])
    assert below.usual_losses(below.add(record(9, losses=(1.0, 1.0)), {})) == [None, None]


def test_bad_losses_do_not_count_for_what_is_usual() -> None:
    """NaN, Inf and none are left out, in the mean and in the place."""
    losses = [(4.0, 1.0), (math.nan, 1.0), (math.inf, 1.0)] * 6
    known = fed(*[record(s, losses=some) for s, some in enumerate(losses)])
    facts = known.add(record(99, losses=(4.0, 1.0)), {})
    assert known.usual_losses(facts) == [4.0, 2.5]


def test_parts_are_those_of_the_record_or_what_can_be_made_of_it() -> None:
    """Told, matched by place where there are as many batches as losses, or losses alone."""
    told = (MicroBatch(1.0, batches=(ONE, OTHER)), MicroBatch(2.0))
    bare = StepRecord(step=0, time=0.0, losses=(1.0, 2.0), batches=(ONE, OTHER))
    assert parts_of(dataclasses.replace(bare, parts=told)) == told
    assert parts_of(bare) == (MicroBatch(1.0, batches=(ONE,)), MicroBatch(2.0, batches=(OTHER,)))
    three = dataclasses.replace(bare, losses=(1.0, 2.0, 3.0))
    assert parts_of(three) == tuple(map(MicroBatch, (1.0, 2.0, 3.0)))


def test_what_ids_name() -> None:
    """The source before the first slash, the length at the end, neither where they are not."""
    assert [source_of(s) for s in ("web/1/2", "/x", "x")] == ["web", None, None]
    assert [length_of(s) for s in ("w/1#len=40", "w/1#len=", "w/1#len=x", "40")] == [
        40,
        None,
        None,
        None,
    ]
    assert ids_of((ONE, OTHER, BatchRef(0, 2, 2))) == {"a/1", "b/2", "a/3", 4}
    assert sources_of((ONE, OTHER)) == {"a", "b"}


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        ((0.1,), (0.5,), 5.0),
        ((0.1, 0.1), (0.1, 0.3), 3.0),
        ((0.1,), (0.01,), 0.1),
        ((0.0,), (0.1,), 1.0),
        ((0.1,), (math.inf,), 1.0),
        ((), (0.1,), 1.0),
    ],
)
def test_how_much_a_rate_rose(
    before: tuple[float, ...], after: tuple[float, ...], ratio: float
) -> None:
    """The largest factor over the groups; 1 where there is none."""
    assert lr_ratio(before, after) == pytest.approx(ratio)


def test_bad_values_are_counted_over_layers() -> None:
    """NaN is "not counted"; the first module with a bad output is remembered."""
    values = np.zeros((3, len(MOMENT_COLUMNS)))
    values[:, MOMENT_COLUMNS.index("nonfinite")] = (2, math.nan, 5)
    assert bad_values(LayerTable(("a", "b", "c"), values, MOMENT_COLUMNS)) == 7
    outputs = np.zeros((2, len(ACTIVATION_COLUMNS)))
    outputs[1, ACTIVATION_COLUMNS.index("nonfinite")] = 1
    table = LayerTable(("first", "second"), outputs, ACTIVATION_COLUMNS)
    assert History().add(record(0, activations=table), {}).bad_module == "second"
    assert History().add(record(0), {}).bad_module is None


def test_memory_is_bounded() -> None:
    """Steps, spikes and sources; the newest steps and spikes, the first sources."""
    known = History()
    for step in range(history.STEPS + 500):
        known.add(record(step, ids=(f"s{step}/1",)), {})
        known.add_spike(step, (ONE,))
    assert len(known.steps) == history.STEPS and known.steps[0].step == 500
    assert len(known.spikes) == history.SPIKES
    assert len(known.source_batches) == history.SOURCES
    assert known.batches_with_sources == history.STEPS + 500
