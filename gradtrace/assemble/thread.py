"""The background thread: values become records, records meet detectors, all go to the sinks."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gradtrace.assemble.assembler import Assembler
from gradtrace.guard import Guard
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import Handed, LateLog, Leftovers
from gradtrace.records import Discard, Event, Record, StepRecord

POLL = 0.2
AT_ONCE = 256
"""Steps taken in one turn; when that many were waiting the next turn follows at once."""
LATE = 0.25
"""Seconds a record is held back, so that values logged just after its step still join it."""
TICK = 0.3
"""Seconds between calls of `tick`."""


class Detector(Protocol):
    """A pure function of the records it has been fed."""

    def update(self, record: StepRecord) -> Sequence[Event]:
        """The events that this record causes."""

    def finish(self) -> Sequence[Event]:
        """The events that were waiting for the end of the run."""


Sink = Callable[[Sequence[Record]], None]


class Background:
    """Takes steps from the hand-over, in one daemon thread, and feeds `sinks` in order.

    A sink gets each record followed by the events it caused. Errors of a stage are held back by
    `guard` and cost the record they concern, nothing else. `tick` is called each TICK seconds, also
    while nothing arrives. `scores` gives those of the record the detectors have just seen, `news`
    the events that no detector found (notes) and that are not on their way yet, `leftover` those of
    what was thrown away when no step has followed.
    """

    def __init__(
        self,
        handoff: Handoff[Handed],
        detectors: Sequence[Detector],
        sinks: Sequence[Sink],
        guard: Guard,
        *,
        name: str,
        tick: Callable[[], None] = lambda: None,
        scores: Callable[[], Mapping[str, float]] = dict,
        news: Callable[[], Sequence[Event]] = tuple,
        leftover: Callable[[Sequence[Discard]], Sequence[Event]] = lambda discards: (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handoff = handoff
        self._detectors = detectors
        self._sinks = sinks
        self._guard = guard
        self._tick = tick
        self._scores = scores
        self._news = news
        self._leftover = leftover
        self._clock = clock
        self._ticked = clock()
        self._assembler = Assembler(guard.failed)
        self._held: tuple[StepRecord, float] | None = None
        self._carried: dict[str, float] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._turns = 0
        self._turned = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the thread does not run, or no more."""
        return not self._thread.is_alive()

    @property
    def is_caller(self) -> bool:
        """Whether the calling code runs in this very thread, as sinks and what they call do."""
        return threading.current_thread() is self._thread

    def flush(self, deadline: float) -> bool:
        """Waits until everything handed over so far has reached the sinks; False at the deadline.

        `deadline` is in the clock's seconds. Not for the training loop: it waits.
        """
        with self._turned:
            wanted: int | None = None
            while self._thread.is_alive():
                if wanted is None and not len(self._handoff):
                    # The turn under way may have passed a stage already; the one after has not.
                    wanted = self._turns + 2
                if wanted is not None and self._turns >= wanted:
                    return True
                self._wake.set()
                left = deadline - self._clock()
                if left <= 0:
                    return False
                self._turned.wait(min(left, POLL))
        return len(self._handoff) == 0

    def stop(self, deadline: float) -> bool:
        """Ends the thread after what is under way has arrived, or at the deadline."""
        self._deadline = deadline
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - self._clock()) + 1.0)
        return self.ended

    def _run(self) -> None:
        behind = False
        while True:
            asked = self._wake.wait(0.0 if behind else POLL)
            self._wake.clear()
            stopping = self._stopping
            behind = self.turn(final=stopping or asked) == AT_ONCE
            with self._turned:
                self._turns += 1
                self._turned.notify_all()
            if stopping and (not len(self._handoff) or self._clock() >= self._deadline):
                self._finish()
                return
            if stopping:
                self._wake.set()
                time.sleep(0.001)  # values of an accelerator are under way; nothing announces them

    def turn(self, *, final: bool) -> int:
        """One pass over what has arrived; `final` also lets go of the record held back.

        Returns how many items it took, at most AT_ONCE.
        """
        out: list[Record] = []
        items = self._handoff.take(AT_ONCE)
        while self._handoff.failures:
            self._guard.failed("the reading of a step", self._handoff.failures.popleft())
        for item in items:
            try:
                if isinstance(item, LateLog):
                    self._log_late(self._assembler.late(item))
                    continue
                if isinstance(item, Leftovers):
                    self._let_go(out)
                    out.extend(self._leftover(self._assembler.leftovers(item)))
                    continue
                record = self._assembler.record(item)
                if self._carried:
                    record = _with_logged(record, self._carried)
                    self._carried = {}
                self._let_go(out)
                self._held = (record, self._clock())
            except Exception as error:
                self._guard.failed("the assembly of a step", error)
        if self._held is not None and (final or self._clock() - self._held[1] >= LATE):
            self._let_go(out)
        out.extend(self._news())
        self._send(out)
        if final or self._clock() - self._ticked >= TICK:
            self._ticked = self._clock()
            try:
                self._tick()
            except Exception as error:
                self._guard.failed("the background tick", error)
        return len(items)

    def _send(self, records: Sequence[Record]) -> None:
        for sink in self._sinks if records else ():
            try:
                sink(records)
            except Exception as error:
                self._guard.failed(f"the sink {getattr(sink, '__qualname__', sink)}", error)

    def _finish(self) -> None:
        for detector in self._detectors:
            try:
                self._send(detector.finish())
            except Exception as error:
                self._guard.failed(f"the detector {type(detector).__name__}", error)

    def _log_late(self, values: Mapping[str, float]) -> None:
        if self._held is not None:
            self._held = (_with_logged(self._held[0], values), self._held[1])
        else:
            self._carried |= values

    def _let_go(self, out: list[Record]) -> None:
        if self._held is None:
            return
        record, _ = self._held
        self._held = None
        events: list[Event] = []
        for detector in self._detectors:
            try:
                events.extend(detector.update(record))
            except Exception as error:
                self._guard.failed(f"the detector {type(detector).__name__}", error)
        scores = self._scores()
        out.append(dataclasses.replace(record, scores=dict(scores)) if scores else record)
        out.extend(events)


def _with_logged(record: StepRecord, values: Mapping[str, float]) -> StepRecord:
    return dataclasses.replace(record, logged={**record.logged, **values})
