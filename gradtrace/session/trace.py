"""`gradtrace(...)` and the `Trace` it returns: what users hold in their hands."""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from gradtrace.attribution.refetch import suspects
from gradtrace.attribution.suspects import Suspects, save_suspects
from gradtrace.detect.clipping import ClippingStats, ClippingSummary
from gradtrace.detect.spikes.detector import SpikeDetector, latest_spikes
from gradtrace.guard import Guard
from gradtrace.measure.parameters import Parameters
from gradtrace.records import Event, RunNote, Spike, StepRecord
from gradtrace.session import closing, left_open
from gradtrace.session.checks import check_divisor, check_logged
from gradtrace.session.ending import status_of
from gradtrace.session.notes import Notes
from gradtrace.session.overhead import Overhead
from gradtrace.session.recent import Recent
from gradtrace.session.settings import Settings, takes
from gradtrace.session.wiring import Wiring


@takes(Settings)
def gradtrace(settings: Settings) -> Trace:
    """Traces the training loop it is wrapped around; nothing in the loop changes.

        with gradtrace(model, exporters=["console"]) as trace:
            for x, y in loader: ...

    `model`: a module, or a mapping of names to modules. `exporters`: exporter objects or names of
    installed ones. `loader`: DataLoaders whose plain `for` loops are then known to each step.
    `sample_ids`: from a batch to the user's own ids. `step_after`: the optimizer whose step ends a
    step, where several make one and that shall not be inferred. `sampling`: what is measured how
    often.
    `spikes`: when a loss or a norm is a spike; None looks for none. `on_spike`: called with each
    Spike in the background thread, never in the loop.
    `directory`: where run directories go; None keeps nothing on disk. `run`: the run's name.
    `config`: hyper-parameters to record. `max_bytes`: the run directory's size, kept by thinning
    old steps. `close_timeout`: how many seconds leaving the `with` waits for exporters.

    Raises TypeError or ValueError for wrong arguments, here and never in the loop.
    """
    return Trace(settings)


class Trace:
    """A running, or not yet started, or ended trace. Made by `gradtrace(...)`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.rank = settings.rank
        self.name = settings.name
        self._recent = Recent()
        self._clipping = ClippingStats()
        recent = self._recent  # no reference back to here: a trace that nobody holds is gone
        self._notes = Notes(rank=self.rank, step=lambda: recent.count)
        self._guard = Guard(self._notes.add)
        sampling = settings.sampling
        self._parameters = Parameters(settings.models, sampling)
        if not self._parameters.names:
            raise ValueError(
                f"no parameter matches Sampling(include={sampling.include!r}, "
                f"exclude={sampling.exclude!r}); expected globs that match some of the model's "
                "parameters, such as "
                f"{next(n for m in settings.models.values() for n, _ in m.named_parameters())!r}"
            )
        self._wiring: Wiring | None = None
        self._saved_spikes: Mapping[str, Any] = {}
        self._state = "new"
        self._entered = False

    # -- life ---

    def __enter__(self) -> Trace:
        self._entered = True
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(status_of(kind if error is None else error))

    def start(self) -> Trace:
        """Begins tracing; what entering the `with` does.

        A trace of the same model that was left open, and that nobody can end any more, is ended.
        Raises ValueError for a run name that is taken, whatever an exporter's `open` raises, and
        RuntimeError when this trace was started before.
        """
        if self._state != "new":
            raise RuntimeError(
                f"this trace is {self._state}; expected a new one: call gradtrace(...) again"
            )
        place = None if self._entered else left_open.place(sys._getframe(1))
        self._state = "starting"
        self._pid = os.getpid()
        try:
            wiring = self._wiring = Wiring(
                self._settings,
                self._guard,
                self._notes,
                self._parameters,
                self._recent,
                self._clipping,
            )
            older = left_open.end_older(wiring, place, closing.end)
            wiring.start(self._saved_spikes)
        except BaseException:
            self._state = "closed"
            if self._wiring is not None:
                self._wiring.undo()
            raise
        self._settings = wiring.settings
        self._state = "running"
        if older:
            wiring.observer.on_first_backward = partial(
                left_open.decide, wiring, older, closing.end_beside
            )
        left_open.begin(left_open.Open(weakref.ref(self), wiring, self._entered, place, self._pid))
        closing.end_at_exit(wiring)
        return self

    def close(self, status: str = "finished") -> None:
        """Ends the trace; what leaving the `with` does. Safe to call twice.

        `status` is what `run.json` says of the run's end, before exporters end theirs: any text.
        "failed", and "ended by ..." as leaving the `with` by an exception says, are told to
        backends as a failure, "killed" as that, all else as a run that has finished.
        Restores everything first, then waits for the exporters, at most `close_timeout` seconds.
        Any thread. Raises TypeError for a status that is no text, and RuntimeError in an `on_spike`
        callback.
        """
        if not isinstance(status, str) or not status:
            raise TypeError(
                f"trace.close() got the status {status!r}; expected some text, such as "
                '"finished" or "stopped early"'
            )
        wiring = self._running
        if wiring is None:
            return
        if wiring.background is not None and wiring.background.is_caller:
            raise RuntimeError(
                "trace.close() was called by an on_spike callback, in the trace's own thread; "
                "expected the thread that trains: let the callback set a flag which the loop sees"
            )
        self._state = "closed"
        closing.end(wiring, status)

    @property
    def _running(self) -> Wiring | None:
        """What runs behind the trace; None before, afterwards, and in a forked child.

        A child leaves its parent's trace alone: it has no thread that would take what it records.
        """
        wiring = self._wiring
        running = self._state == "running" and os.getpid() == self._pid
        return wiring if running and wiring is not None and not wiring.ending else None

    # -- in the loop ---

    def step(self) -> None:
        """Closes a step by hand, for loops without a torch optimizer; then nothing else does.

        Does nothing when nothing happened since the last close.
        """
        wiring = self._running
        if wiring is not None:
            wiring.marks += 1
            self._guard.wrap("trace.step()", wiring.collector.mark)()

    def batches(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """The iterable's items, each known to the step that consumes it."""
        wiring = self._running
        return iter(iterable) if wiring is None else wiring.observer.batches(iterable)

    def take(self, loader: Any, epoch: int | None = None, batch_index: int | None = None) -> bool:
        """Says that the loop takes a loader's next batch now, for the backward that follows.

        For loops whose batches are not taken in the order and number of their deliveries, and for
        integrations; from the first call on nothing is taken from this loader by itself. `epoch`
        and `batch_index` replace what was counted. Returns whether a delivered batch was waiting.
        """
        if self._state != "running" or self._wiring is None:
            return False
        return bool(
            self._guard.wrap("trace.take()", self._wiring.observer.take)(loader, epoch, batch_index)
        )

    def log(self, **values: float | Tensor) -> None:
        """Records values with the step that is open or has just ended: floats or 0-dim tensors.

        Never waits for a device. Raises TypeError for anything else.
        """
        copies = check_logged(values)
        wiring = self._running
        if wiring is not None:
            self._guard.wrap("trace.log()", wiring.collector.log)(copies)

    def divide(self, by: float) -> None:
        """Tells what losses are divided by before their backward, from the next backward on.

        So that a loss accumulated as `loss / 4` is told as `loss`. Gradients are what they are.
        Raises TypeError or ValueError for anything but a finite number above 0.
        """
        divisor = check_divisor(by)
        wiring = self._running
        if wiring is not None:
            wiring.collector.divide(divisor)

    def flush(self, timeout: float = 10.0) -> bool:
        """Waits until all steps closed so far are in `steps`, on disk and with the exporters.

        False if that took longer than `timeout` seconds, and at once in an `on_spike` callback,
        which would wait for itself. For the end of an epoch, not each step.
        """
        wiring = self._running
        if wiring is None or wiring.background is None:
            return True
        if wiring.background.is_caller:
            return False
        deadline = time.monotonic() + timeout
        done = wiring.background.flush(deadline)
        return wiring.delivery.flush(max(0.0, deadline - time.monotonic())) and done

    def suspects(
        self,
        spike: Spike,
        dataset: Any,
        loss_fn: Callable[..., Tensor],
        *,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> Suspects:
        """The samples behind a spike, fetched again and ranked; see `gradtrace.suspects`.

        Also kept in the run directory, where `gradtrace bad-batches` finds them.
        """
        if len(self._settings.models) > 1:
            raise ValueError(
                f"this trace has {len(self._settings.models)} models; expected one: call "
                "gradtrace.suspects(model, spike, ...) with the one that had the spike"
            )
        [model] = self._settings.models.values()
        found = suspects(model, spike, dataset, loss_fn, collate=collate)
        if self.path is not None:
            save_suspects(self.path, found)
        return found

    def state_dict(self) -> dict[str, Any]:
        """What spike detection has learned, fit for JSON and for a checkpoint.

        Waits, at most 10 s, until the steps so far have been looked at.
        """
        self.flush()
        detector = None if self._wiring is None else self._wiring.spikes
        return {"spikes": {} if detector is None else detector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets a resumed run start with what an earlier one has learned; until its first step.

        Thread that trains, or before the start. Raises RuntimeError once there was a step, or the
        trace is closed, and ValueError for a state of another rule.
        """
        wiring = self._running
        if wiring is None and self._state != "new":
            raise RuntimeError(
                f"this trace is {self._state}; expected a new one: trace = gradtrace(...), "
                "trace.load_state_dict(state), then `with trace:`"
            )
        if wiring is not None and wiring.schedule.step:
            raise RuntimeError(
                f"this trace has recorded {wiring.schedule.step:,} steps already; expected one "
                "without: call trace.load_state_dict(state) before the first step"
            )
        saved = state["spikes"]
        if self._settings.spikes is not None:
            SpikeDetector(self._settings.spikes, {}).load_state_dict(saved)
        self._saved_spikes = saved
        if wiring is not None and wiring.spikes is not None:
            # The detector is the background thread's, which has no record to show it yet.
            wiring.spikes.load_state_dict(saved)

    # -- what is known ---

    @property
    def steps(self) -> list[StepRecord]:
        """The newest steps, oldest first: at most 1,000, fewer when their tables are large."""
        return self._recent.steps()

    @property
    def events(self) -> list[Event]:
        """The newest events, oldest first."""
        return self._recent.events()

    @property
    def spikes(self) -> list[Spike]:
        """The newest spikes, oldest first; each once, with its whole duration when it has ended."""
        return latest_spikes(self._recent.events())

    @property
    def clipping(self) -> ClippingSummary:
        """How often and how much clipping engaged, and which layers dominated."""
        return self._clipping.summary()

    @property
    def notes(self) -> list[RunNote]:
        """What could not be observed, and why."""
        return self._notes.all()

    @property
    def overhead(self) -> Overhead:
        """What the trace spent on the training thread."""
        return Overhead.of(self._guard, self._recent)

    @property
    def path(self) -> Path | None:
        """The run directory; None when nothing is kept on disk."""
        return None if self._wiring is None else self._wiring.path

    @property
    def discarded(self) -> int:
        """How many backwards' gradients were thrown away: nothing was moved by them."""
        return 0 if self._wiring is None else self._wiring.collector.discarded

    @property
    def dropped(self) -> int:
        """Steps that were lost because the background thread could not keep up."""
        return 0 if self._wiring is None else self._wiring.handoff.dropped
