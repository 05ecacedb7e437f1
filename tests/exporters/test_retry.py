"""What an export that failed has left to send."""

from __future__ import annotations

from build import step

from gradtrace.exporters._retry import Unsent, is_same


def test_the_very_records_are_known_again() -> None:
    """The same objects in the same order are the same batch; equal ones are not, nor is a part."""
    one, two = step(1), step(2)
    assert is_same([one, two], [one, two])
    assert not is_same([one, two], [two, one])
    assert not is_same([one, two], [one])
    assert not is_same([one], [step(1)])
    assert not is_same([], [])


def test_rows_are_kept_for_their_records() -> None:
    """Rows that are taken off are gone, and a later batch is told from the one they are of."""
    records = [step(1), step(2)]
    unsent = Unsent(records, ["a", "b", "c"])
    assert unsent.holds(list(records)) and not unsent.holds([step(3)])
    del unsent.rows[:2]
    records.append(step(3))
    assert unsent.rows == ["c"] and not unsent.holds(records)
