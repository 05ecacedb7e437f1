"""`gradtrace(...)` and the `Trace` it returns: what users hold in their hands."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradtrace.assemble.thread import TICK, Background, Detector
from gradtrace.attribution.refetch import suspects
from gradtrace.attribution.suspects import Suspects, save_suspects
from gradtrace.collect.collector import Collector
from gradtrace.collect.observer import Watch
from gradtrace.detect.clipfindings import ClipJudge
from gradtrace.detect.clipping import ClippingStats, ClippingSummary
from gradtrace.detect.nonfinite import NonFiniteDetector
from gradtrace.detect.skipped import SkippedStepDetector
from gradtrace.detect.spikes.detector import SpikeDetector, latest_spikes
from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.exporter import Exporter, Watching, introduce, send_command
from gradtrace.guard import Guard
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import LateLog, RawStep
from gradtrace.measure.histograms import PER_LAYER
from gradtrace.measure.parameters import Parameters
from gradtrace.pipeline.worker import ExporterWorker, close_all, is_in_use, unique_names
from gradtrace.records import Event, Record, RunInfo, RunNote, Spike, StepRecord
from gradtrace.runlog import Backlog, RunLog, create_run_directory
from gradtrace.sampling import Sampling
from gradtrace.session import options
from gradtrace.session.describe import describe_modules, describe_parameters, is_sharded
from gradtrace.session.mistakes import Seen, mistakes
from gradtrace.session.recent import Recent
from gradtrace.session.settings import OnSpike, Settings

logger = logging.getLogger("gradtrace")

_DEFAULT_RULE = SpikeRule()
_DRAIN = 5.0
"""Seconds that closing waits for values still on an accelerator."""
_HURRIED = 1.0
"""The same after Ctrl-C."""
_NONPOSITIVE = 20
"""Steps with a loss of zero or less before that is noted; a single zero is a perfect fit."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a trace spent on the training thread: in all, per step, and relative to the step time.

    NaN until there are steps to relate it to.
    """

    seconds: float
    per_step: float
    ratio: float


def gradtrace(
    model: nn.Module | Mapping[str, nn.Module],
    *,
    exporters: Sequence[Exporter | str] = (),
    loader: DataLoader[Any] | Sequence[DataLoader[Any]] | None = None,
    sample_ids: Callable[[Any], Any] | None = None,
    sampling: Sampling | None = None,
    spikes: SpikeRule | None = _DEFAULT_RULE,
    on_spike: OnSpike | Sequence[OnSpike] | None = None,
    directory: str | os.PathLike[str] | None = "gradtrace-runs",
    run: str | None = None,
    config: Mapping[str, Any] | None = None,
    max_bytes: int = 2 << 30,
    close_timeout: float = 10.0,
) -> Trace:
    """Traces the training loop it is wrapped around; nothing in the loop changes.

        with gradtrace(model, exporters=["console"]) as trace:
            for x, y in loader: ...

    `model`: a module, or a mapping of names to modules. `exporters`: exporter objects or names of
    installed ones. `loader`: DataLoaders whose plain `for` loops are then known to each step.
    `sample_ids`: from a batch to the user's own ids. `sampling`: what is measured how often.
    `spikes`: when a loss or a norm is a spike; None looks for none. `on_spike`: called with each
    Spike in the background thread, never in the loop.
    `directory`: where run directories go; None keeps nothing on disk. `run`: the run's name.
    `config`: hyper-parameters to record. `max_bytes`: the run directory's size, kept by thinning
    old steps. `close_timeout`: how many seconds leaving the `with` waits for exporters.

    Raises TypeError or ValueError for wrong arguments, here and never in the loop.
    """
    return Trace(
        Settings.check(
            model,
            exporters=exporters,
            loader=loader,
            sample_ids=sample_ids,
            sampling=Sampling() if sampling is None else sampling,
            spikes=spikes,
            on_spike=on_spike,
            directory=directory,
            run=run,
            config=config,
            max_bytes=max_bytes,
            close_timeout=close_timeout,
        )
    )


class Trace:
    """A running, or not yet started, or ended trace. Made by `gradtrace(...)`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.rank = settings.rank
        self.name = settings.name
        self._notes: list[RunNote] = []
        self._recent = Recent()
        self._stats = ClippingStats()
        self._guard = Guard(self._on_internal_error)
        sampling = settings.sampling
        self._parameters = Parameters(settings.models, sampling)
        if not self._parameters.names:
            raise ValueError(
                f"no parameter matches Sampling(include={sampling.include!r}, "
                f"exclude={sampling.exclude!r}); the model has, for instance, "
                f"{next(n for m in settings.models.values() for n, _ in m.named_parameters())!r}"
            )
        self._path: Path | None = None
        self._taps = ExitStack()
        self._workers: list[ExporterWorker] = []
        self._run_log: RunLog | None = None
        self._background: Background | None = None
        self._watch: Watch | None = None
        self._spikes: SpikeDetector | None = None
        self._saved_spikes: Mapping[str, Any] = {}
        self._nonpositive = 0
        self._gradients_seen = False
        self._loader_given = False
        self._state = "new"

    # -- life ---

    def __enter__(self) -> Trace:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close("finished" if kind is None else f"ended by {kind.__name__}")

    def start(self) -> Trace:
        """Begins tracing; what entering the `with` does.

        Raises ValueError for a run name that is taken, whatever an exporter's `open` raises, and
        RuntimeError when this trace was started before.
        """
        if self._state != "new":
            raise RuntimeError(
                f"this trace is {self._state}; expected a new one: call gradtrace(...) again"
            )
        self._state = "starting"
        self._pid = os.getpid()
        try:
            self._start()
        except BaseException:
            self._state = "closed"
            self._taps.close()
            if self._background is not None:
                self._background.stop(time.monotonic())
            close_all(self._workers, 1.0)
            if self._run_log is not None:
                self._run_log.close({}, status="failed to start")
            if self._path is not None:
                # Nothing ran, so the name is free for another try.
                shutil.rmtree(self._path, ignore_errors=True)
            raise
        self._state = "running"
        atexit.register(self.close)
        return self

    def _start(self) -> None:
        started = time.time()
        if self._settings.directory is not None:
            self._path = self._make_directory(self._settings.directory)
        info = RunInfo(
            name=self.name,
            started=started,
            path=self._path,
            rank=self.rank,
            world_size=self._settings.world_size,
            parameters=describe_parameters(self._parameters),
            modules=describe_modules(self._settings.models),
            sampling=asdict(self._settings.sampling),
            config=self._settings.config,
            versions=options.versions(),
        )
        if self._path is not None:
            self._run_log = RunLog(
                self._path,
                info,
                max_bytes=self._settings.max_bytes,
                flush_seconds=TICK,
                on_error=self._on_disk_trouble,
            )
        exporters = self._settings.exporters
        for exporter, name in zip(exporters, unique_names(exporters), strict=True):
            if is_in_use(exporter):
                raise ValueError(
                    f"the exporter {name!r} is in use by another trace that has not ended; "
                    "expected one for each trace: make another"
                )
            introduce(exporter, name)
            exporter.open(info)
            backlog = None if self._path is None else Backlog(self._path)
            worker = ExporterWorker(exporter, name=name, backlog=backlog, run=self._path)
            self._workers.append(worker)
        for exporter in exporters:
            if isinstance(exporter, Watching):
                exporter.watch(self._dropped_by_exporter)
        counted = len(self._parameters.tensors) if self._settings.sampling.histograms else 0
        handoff: Handoff[RawStep | LateLog] = Handoff(reserve=4 * PER_LAYER * counted)
        self._handoff = handoff
        self._collector = Collector(
            self._parameters,
            self._settings.sampling,
            handoff,
            rank=self.rank,
            overhead=lambda: self._guard.seconds,
            note=self._note,
            guarded=self._guard.wrap,
        )
        watch = Watch(
            self._collector,
            self._settings.models,
            self._settings.sampling,
            self._guard,
            self._note,
            self._settings.sample_ids,
        )
        self._watch = watch
        self._background = Background(
            handoff,
            self._detectors(watch.forward_order()),
            [self._recent.add, self._sum_up]
            + ([self._run_log.append] if self._run_log is not None else [])
            + [worker.offer for worker in self._workers]
            + ([self._call_back] if self._settings.on_spike else []),
            self._guard,
            name=f"gradtrace-{self.name}",
            scores=lambda: {} if self._spikes is None else self._spikes.scores,
            tick=self._run_log.flush if self._run_log is not None else _nothing,
        )
        for worker in self._workers:
            worker.start()
        self._background.start()
        watch.attach(self._taps, self._settings.loaders)
        self._loader_given = bool(self._settings.loaders)
        # An ended trace shall not keep them and their workers alive.
        self._settings = replace(self._settings, loaders=[])
        if is_sharded(self._parameters, self._settings.models):
            self._note(
                "parameters",
                "parameters may be sharded over ranks: statistics are of this rank's part",
            )

    def _detectors(self, forward_order: Mapping[str, int]) -> list[Detector]:
        found: list[Detector] = [
            NonFiniteDetector(forward_order),
            SkippedStepDetector(),
            ClipJudge(),
        ]
        if self._settings.spikes is not None:
            self._spikes = SpikeDetector(
                self._settings.spikes,
                forward_order,
                world_size=self._settings.world_size,
                on_alarm=self._on_alarm,
            )
            self._spikes.load_state_dict(self._saved_spikes)
            found.append(self._spikes)
        return found

    def _on_alarm(self, step: int) -> None:
        self._collector.burst(self._settings.sampling.burst)

    def _call_back(self, records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record, Spike) and record.duration == 1:
                for function in self._settings.on_spike:
                    try:
                        function(record)
                    except Exception as error:
                        self._guard.failed("an on_spike callback", error)

    def _make_directory(self, directory: Path) -> Path | None:
        try:
            return create_run_directory(directory, self.name)
        except OSError as error:
            self._note(
                "run log",
                f"nothing is kept on disk, for {str(directory)!r} cannot be written: {error}",
            )
            logger.warning("%s", self._notes[-1].message)
            return None

    def close(self) -> None:
        """Ends the trace; what leaving the `with` does. Safe to call twice.

        Restores everything first, then waits for the exporters, at most `close_timeout` seconds.
        """
        self._close("finished")

    def _close(self, status: str) -> None:
        if self._state != "running" or os.getpid() != self._pid:
            return  # a forked child leaves the parent's trace alone
        self._state = "closed"
        self._taps.close()
        self._guard.wrap("closing the last step", self._collector.finish)()
        if self._run_log is not None and status != "finished":
            # Exporters, which end their own runs now, may want to know.
            self._run_log.update_info({"status": status})
        interrupted: BaseException | None = None
        try:
            left = self._wait(_DRAIN, self._settings.close_timeout)
        except BaseException as error:  # the run log shall be whole nevertheless
            if isinstance(error, Exception):
                self._guard.failed("closing", error)
            else:  # Ctrl-C, which is the user's
                interrupted = error
            left = self._wait(_HURRIED, 0.0)
        self._guard.wrap("looking for what was missed", self._look_for_misuse)()
        self._settle(left, status)
        atexit.unregister(self.close)
        if interrupted is not None:
            raise interrupted

    def _wait(self, drain: float, close_timeout: float) -> dict[str, str]:
        """Lets everything arrive; what the exporters still owe, in words, by name."""
        assert self._background is not None
        self._background.stop(time.monotonic() + drain)
        if self._run_log is not None:
            self._run_log.flush()
        return close_all(self._workers, close_timeout)

    def _look_for_misuse(self) -> None:
        """Notes why there is nothing to see where there should be."""
        assert self._watch is not None
        seen = Seen(
            steps=self._recent.count,
            backwards=self._collector.backwards,
            others=self._collector.others,
            gradients=self._gradients_seen,
            loader=self._loader_given,
            batches=self._watch.delivered_batches,
        )
        for source, message in mistakes(seen):
            self._note(source, message)
            logger.warning("%s", message)

    def _settle(self, left: Mapping[str, str], status: str) -> None:
        """Tells what is owed and lost, and ends the run log."""
        assert self._background is not None
        commands = {
            worker.name: send_command(worker.exporter, str(self._path), worker.name)
            for worker in self._workers
        }
        for name, owed in left.items():
            if owed:
                self._note(
                    f"exporter {name}",
                    f"exporter {name!r} still owes {owed}"
                    + (
                        f": deliver it with `{commands[name]}`"
                        if self._path is not None
                        else ", which is lost: there is no run log"
                    ),
                )
                logger.warning("%s", self._notes[-1].message)
        for worker in self._workers:
            if worker.dropped:
                self._note(
                    f"exporter {worker.name}",
                    f"exporter {worker.name!r} lost {worker.dropped} records: it could not keep up"
                    " and they could not be read back from a run log",
                )
        if self._handoff.dropped:
            self._note(
                "hand-over",
                f"{self._handoff.dropped} steps were lost: the background thread could not keep up",
            )
        self._background.turn(final=True)
        if self._run_log is not None:
            self._run_log.close(
                {
                    "steps": self._recent.count,
                    "dropped": self._handoff.dropped,
                    "overhead": asdict(self.overhead),
                    "clipping": asdict(self.clipping),
                },
                status=status,
            )

    # -- in the loop ---

    def step(self) -> None:
        """Closes a step by hand, for loops without a torch optimizer.

        Does nothing when nothing happened since the last close.
        """
        if self._state == "running":
            self._guard.wrap("trace.step()", self._collector.mark)()

    def batches(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """The iterable's items, each known to the step that consumes it."""
        if self._state != "running" or self._watch is None:
            return iter(iterable)
        return self._watch.batches(iterable)

    def log(self, **values: float | Tensor) -> None:
        """Records values with the step that is open or has just ended: floats or 0-dim tensors.

        Never waits for a device. Raises TypeError for anything else.
        """
        copies = options.check_logged(values)
        if self._state == "running":
            self._guard.wrap("trace.log()", self._collector.log)(copies)

    def flush(self, timeout: float = 10.0) -> bool:
        """Waits until all steps closed so far are in `steps`, on disk and with the exporters.

        False if that took longer than `timeout` seconds. For the end of an epoch, not each step.
        """
        if self._background is None or self._state != "running":
            return True
        deadline = time.monotonic() + timeout
        done = self._background.flush(deadline)
        for worker in self._workers:
            done = worker.flush(max(0.0, deadline - time.monotonic())) and done
        return done

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
        if self._path is not None:
            save_suspects(self._path, found)
        return found

    def state_dict(self) -> dict[str, Any]:
        """What spike detection has learned, fit for JSON and for a checkpoint.

        Waits, at most 10 s, until the steps so far have been looked at.
        """
        self.flush()
        return {"spikes": {} if self._spikes is None else self._spikes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets a resumed run start with what an earlier one has learned; before it starts.

        Raises RuntimeError once the trace has started and ValueError for a state of another rule.
        """
        if self._state != "new":
            raise RuntimeError(
                f"this trace is {self._state}; expected a new one: trace = gradtrace(...), "
                "trace.load_state_dict(state), then `with trace:`"
            )
        saved = state["spikes"]
        if self._settings.spikes is not None:
            SpikeDetector(self._settings.spikes, {}).load_state_dict(saved)
        self._saved_spikes = saved

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
        return self._stats.summary()

    @property
    def notes(self) -> list[RunNote]:
        """What could not be observed, and why."""
        return list(self._notes)

    @property
    def overhead(self) -> Overhead:
        """What the trace spent on the training thread."""
        seconds, count = self._guard.seconds, self._recent.count
        first, last = self._recent.first_time, self._recent.last_time
        lasted = (last - first) / (count - 1) if count > 1 and first and last else float("nan")
        per_step = seconds / count if count else float("nan")
        return Overhead(seconds, per_step, per_step / lasted if lasted else float("nan"))

    @property
    def path(self) -> Path | None:
        """The run directory; None when nothing is kept on disk."""
        return self._path

    @property
    def dropped(self) -> int:
        """Steps that were lost because the background thread could not keep up."""
        return self._handoff.dropped if self._state in ("running", "closed") else 0

    def _dropped_by_exporter(self) -> dict[str, int]:
        return {worker.name: worker.dropped for worker in self._workers}

    # -- notes ---

    def _note(self, source: str, message: str) -> None:
        """Records a note, the same text once."""
        if any(note.message == message for note in self._notes):
            return
        note = RunNote(
            step=self._recent.count,
            time=time.time(),
            severity="warning",
            message=message,
            rank=self.rank,
            source=source,
        )
        self._notes.append(note)
        if self._background is not None:
            self._background.tell(note)

    def _on_internal_error(self, source: str, text: str) -> None:
        self._note(source, text)

    def _on_disk_trouble(self, text: str) -> None:
        logger.warning("%s", text)
        self._note("run log", text)

    def _sum_up(self, records: Sequence[Any]) -> None:
        for record in records:
            if isinstance(record, StepRecord):
                self._stats.update(record)
                self._gradients_seen |= record.grad_norm is not None
                if record.loss is not None and record.loss <= 0:
                    self._nonpositive += 1
                    if self._nonpositive == _NONPOSITIVE and self._spikes is not None:
                        self._note(
                            "spikes",
                            "the loss is not above zero: its spikes, which are judged as ratios, "
                            "are not looked for; those of the gradient norm are",
                        )


def _nothing() -> None:
    pass
