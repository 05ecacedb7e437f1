"""The last records of a run, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gradtrace.records import Event, Record, StepRecord, table_bytes, without_histograms

STEPS = 1000
EVENTS = 10_000
TABLE_BYTES = 8 << 20
HISTOGRAM_BYTES = 8 << 20


@dataclass(slots=True)
class _Kept:
    record: StepRecord
    size: int
    """Of its tables without histograms."""


class Recent:
    """Keeps the newest steps, at most STEPS of them and TABLE_BYTES of tables, and events.

    Histograms count apart: of the newest HISTOGRAM_BYTES of them.

    Written by the background thread; reading copies, from any thread.
    """

    def __init__(self) -> None:
        self._steps: deque[_Kept] = deque()
        self._with_histograms: deque[_Kept] = deque()
        self._histogram_bytes = 0
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._bytes = 0
        self.count = 0
        """Steps seen in all."""
        self.gradients = False
        """Whether any of them had a gradient norm."""
        self.losses = False
        """The same of a loss."""
        self.first_time: float | None = None
        self.last_time: float | None = None

    def add(self, records: Sequence[Record]) -> None:
        """Takes records in order."""
        for record in records:
            if isinstance(record, StepRecord):
                self._add_step(record)
            else:
                self._events.append(record)

    def _add_step(self, record: StepRecord) -> None:
        extra = 0 if record.histograms is None else record.histograms.nbytes
        kept = _Kept(record, table_bytes(record) - extra)
        self._steps.append(kept)
        self._bytes += kept.size
        if extra:
            self._with_histograms.append(kept)
            self._histogram_bytes += extra
        while self._histogram_bytes > HISTOGRAM_BYTES and len(self._with_histograms) > 1:
            self._forget_histograms()
        while len(self._steps) > STEPS or (self._bytes > TABLE_BYTES and len(self._steps) > 1):
            oldest = self._steps.popleft()
            self._bytes -= oldest.size
            if self._with_histograms and self._with_histograms[0] is oldest:
                self._forget_histograms()
        self.count += 1
        self.gradients |= record.grad_norm is not None
        self.losses |= record.loss is not None
        if self.first_time is None:
            self.first_time = record.time
        self.last_time = record.time

    def _forget_histograms(self) -> None:
        kept = self._with_histograms.popleft()
        kept.record, saved = without_histograms(kept.record)
        self._histogram_bytes -= saved

    def steps(self) -> list[StepRecord]:
        """The newest steps, oldest first."""
        return [kept.record for kept in tuple(self._steps)]

    def events(self) -> list[Event]:
        """The newest events, oldest first."""
        return list(self._events)
