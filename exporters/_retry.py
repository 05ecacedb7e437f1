"""An export that failed is tried again with the same records, which are not to count twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from gradtrace.records import Record

Row = TypeVar("Row")


class Unsent(Generic[Row]):
    """What some records were made into and the backend has not taken yet, in `rows`."""

    def __init__(self, records: Sequence[Record], rows: list[Row]) -> None:
        self._records = list(records)
        self.rows = rows

    def holds(self, records: Sequence[Record]) -> bool:
        """Whether it was made of these very records."""
        return is_same(self._records, records)


def is_same(mine: Sequence[Record], theirs: Sequence[Record]) -> bool:
    """Whether these are the very records, not just equal ones; none are the same as none."""
    return bool(mine) and len(mine) == len(theirs) and all(a is b for a, b in zip(mine, theirs))
