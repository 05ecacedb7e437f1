"""What was offered and not taken: bounds, losses, and the way through the run log and back."""

from __future__ import annotations

import numpy as np
import pytest
from deliveries import note, step

from gradtrace.pipeline.position import Position
from gradtrace.pipeline.queue import BATCH, Owed, Queue
from gradtrace.records import MOMENT_COLUMNS, LayerTable, Record, StepRecord


def test_what_is_put_is_taken_in_order_and_in_batches() -> None:
    """At most BATCH at once; positions and what is owed follow."""
    queue = Queue(log=False)
    records: list[Record] = [r for n in range(BATCH) for r in (step(n), note(n))]
    assert queue.put(records) == 0
    assert len(queue) == 2 * BATCH and queue.offered == Position(BATCH, BATCH)
    first = queue.take()
    assert first == records[:BATCH] and queue.head == Position(BATCH // 2, BATCH // 2)
    assert queue.owed == Owed(BATCH, BATCH)  # taken is not delivered
    queue.deliver(first, queue.head)
    assert queue.owed == Owed(BATCH // 2, BATCH // 2) and queue.done == queue.head
    assert queue.take() == records[BATCH:] and len(queue) == 0


@pytest.mark.parametrize(
    ("owed", "words"),
    [
        (Owed(), ""),
        (Owed(1, 0), "1 step"),
        (Owed(0, 2), "2 events"),
        (Owed(1200, 1), "1,200 steps and 1 event"),
    ],
)
def test_what_is_owed_in_words(owed: Owed, words: str) -> None:
    """Singular and plural, thousands apart, nothing for none."""
    assert str(owed) == words


def test_without_a_log_the_oldest_go() -> None:
    """They are counted, owed no more, and the head lies behind them."""
    queue = Queue(log=False, capacity=3)
    assert queue.put([step(0), note(0), step(1)]) == 0
    assert queue.put([note(1), step(2)]) == 2
    assert queue.dropped == 2 and queue.head == Position(1, 1)
    assert queue.owed == Owed(2, 1)
    assert queue.take() == [step(1), note(1), step(2)]


def test_bytes_count_as_well_as_records() -> None:
    """Large tables fill it, what was taken makes room, and the newest record always stays."""
    table = LayerTable(("w",) * 100, np.zeros((100, 6)), MOMENT_COLUMNS)
    large = [StepRecord(step=n, time=0.0, gradients=table) for n in range(6)]
    queue = Queue(log=False, max_bytes=2 * table.values.nbytes)
    assert queue.put(large[:2]) == 0
    assert queue.take() == large[:2]
    assert queue.put(large[2:4]) == 0 and queue.put(large[4:5]) == 1
    assert Queue(log=False, max_bytes=1).put(large) == 5


def test_with_a_log_a_full_queue_is_emptied_and_loses_nothing() -> None:
    """All of it stays owed, and it does not fill again until it is told to."""
    queue = Queue(log=True, capacity=2)
    assert queue.put([step(0), step(1), note(0)]) == 0
    assert queue.behind and not queue.filling and len(queue) == 0
    queue.put([step(2)])
    assert len(queue) == 0 and queue.dropped == 0 and queue.owed == Owed(3, 1)


def test_the_way_through_the_log_and_back() -> None:
    """What the log shows before the queue is wanted, once; what it never shows is lost."""
    queue = Queue(log=True, capacity=2)
    queue.put([step(0), note(0), step(1), step(2)])
    found = queue.wanted([step(0), note(0), step(2)], Position(3, 1))
    assert found == ([step(0), note(0), step(2)], Position(3, 1))
    queue.deliver(*found)
    queue.put([step(3)])  # not on disk yet
    assert queue.wanted([], Position(3, 1)) is None
    queue.refill()
    queue.put([step(4)])
    assert len(queue) == 1 and queue.head == Position(4, 1)
    # The log shows 4 already, which comes live.
    found = queue.wanted([step(3), step(4)], Position(5, 1))
    assert found == ([step(3)], Position(4, 1))
    queue.deliver(*found)
    assert queue.done.reached(queue.head)
    assert queue.meet() == 1  # step 1
    assert queue.dropped == 1 and not queue.behind and queue.owed == Owed(1, 0)
    assert queue.take() == [step(4)]


def test_events_of_the_log_are_counted_not_compared() -> None:
    """The log may order events otherwise than they were offered: their number decides."""
    queue = Queue(log=True, capacity=1)
    queue.put([note(5), note(3)])
    queue.refill()
    assert queue.wanted([note(3), note(5), note(9)], Position(0, 3)) == (
        [note(3), note(5)],
        Position(0, 2),
    )


@pytest.mark.parametrize("bounds", [{"capacity": 0}, {"max_bytes": 0}])
def test_bounds_are_checked(bounds: dict[str, int]) -> None:
    """Bounds that make no sense are refused."""
    with pytest.raises(ValueError, match=next(iter(bounds))):
        Queue(log=False, **bounds)
