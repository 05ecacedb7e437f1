"""What runs behind a trace, put together: who is handed what, and who tells whom."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradtrace.assemble.thread import TICK, Background, Detector
from gradtrace.collect.batches import Batches
from gradtrace.collect.collector import Collector
from gradtrace.collect.observer import Observer
from gradtrace.collect.schedule import Schedule
from gradtrace.detect.clipfindings import ClipJudge
from gradtrace.detect.clipping import ClippingStats
from gradtrace.detect.nonfinite import NonFiniteDetector
from gradtrace.detect.nonpositive import NonPositiveLoss
from gradtrace.detect.skipped import SkippedStepDetector
from gradtrace.detect.spikes.detector import SpikeDetector
from gradtrace.guard import Guard
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import Handed
from gradtrace.measure.histograms import PER_LAYER
from gradtrace.measure.parameters import Parameters
from gradtrace.pipeline.delivery import Delivery
from gradtrace.records import Record, RunInfo, Spike, StepRecord
from gradtrace.runlog.backlog import Backlog
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.writer import RunLog
from gradtrace.session.activity import Activity, Moves
from gradtrace.session.describe import (
    describe_modules,
    describe_parameters,
    is_sharded,
    versions,
)
from gradtrace.session.notes import Notes
from gradtrace.session.recent import Recent
from gradtrace.session.settings import OnSpike, Settings
from gradtrace.session.silence import Silence


@dataclass(slots=True)
class Wiring:
    """The parts of a trace that is about to start. `undo` takes back a start that failed."""

    settings: Settings
    guard: Guard
    notes: Notes
    parameters: Parameters
    recent: Recent
    clipping: ClippingStats
    loader_given: bool = False
    taps: ExitStack = field(default_factory=ExitStack)
    path: Path | None = None
    run_log: RunLog | None = None
    spikes: SpikeDetector | None = None
    skipped: SkippedStepDetector = field(default_factory=SkippedStepDetector)
    step_after: str = field(init=False)
    batches: Batches = field(init=False)
    schedule: Schedule = field(init=False)
    delivery: Delivery = field(init=False)
    handoff: Handoff[Handed] = field(init=False)
    collector: Collector = field(init=False)
    observer: Observer = field(init=False)
    silence: Silence = field(default_factory=Silence)
    moves: Moves = field(default_factory=Moves)
    marks: int = 0
    """Calls of trace.step()."""
    at_exit: Callable[[], None] | None = None
    """What closes the trace when the process ends before."""
    ending: bool = False
    """Whether the trace closes: what happens now is no activity of the loop."""
    background: Background | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        self.schedule = Schedule(settings.sampling)
        self.delivery = Delivery(settings.targets)
        counted = len(self.parameters.tensors) if settings.sampling.histograms else 0
        self.handoff = Handoff(reserve=4 * PER_LAYER * counted)
        self.step_after = type(settings.step_after).__name__ if settings.step_after else ""
        self.batches = batches = Batches(
            settings.sample_ids, self.notes.add, loaders=settings.loaders or None
        )
        self.collector = Collector(
            self.parameters,
            self.schedule,
            self.handoff,
            batches=batches,
            rank=settings.rank,
            overhead=lambda: self.guard.seconds,
            note=self.notes.add,
            guarded=self.guard.wrap,
            step_after=settings.step_after,
        )
        self.observer = Observer(
            self.collector,
            settings.models,
            settings.sampling,
            self.guard,
            self.notes.add,
            batches,
        )

    def start(self, saved_spikes: Mapping[str, Any]) -> None:
        """Opens the run directory and the exporters, then starts the threads, then the taps."""
        settings = self.settings
        info = self._open()
        if settings.spikes is not None:
            self.spikes = SpikeDetector(
                settings.spikes,
                self.observer.forward_order(),
                world_size=settings.world_size,
                on_alarm=lambda step: self.schedule.burst(),
            )
            self.spikes.load_state_dict(saved_spikes)
        log, spikes = self.run_log, self.spikes
        sinks: list[Callable[[Sequence[Record]], None]] = [
            self.recent.add,
            self.notes.see,
            _steps_to(self.clipping),
        ]
        if log is not None:
            sinks.append(log.append)
        sinks.append(self.delivery.offer)
        if settings.callbacks:
            sinks.append(_calling(settings.callbacks, self.guard))
        self.background = Background(
            self.handoff,
            self._detectors(),
            sinks,
            self.guard,
            name=f"gradtrace-{settings.name}",
            tick=self._tick,
            scores=dict if spikes is None else lambda: spikes.scores,
            news=self.notes.take,
            leftover=self.skipped.rest,
        )
        self.delivery.open(info, None if self.path is None else self._backlog)
        self.delivery.start()
        self.background.start()
        self.observer.attach(self.taps)
        self.loader_given = bool(settings.loaders)
        self.settings = settings.without_loaders()
        if is_sharded(self.parameters, settings.models):
            self.notes.add(
                "parameters",
                "parameters may be sharded over ranks: statistics are of this rank's part",
            )

    def _tick(self) -> None:
        """Background thread, each TICK seconds."""
        why = None if self.ending else self.silence.look(self.activity())
        if why is not None:
            self.notes.add(*why, warn=True)
        if self.run_log is not None:
            self.run_log.flush()

    def activity(self) -> Activity:
        """What the loop has done so far. One thread at a time; it looks at no gradient."""
        collector, tensors = self.collector, self.parameters.tensors
        return Activity(
            records=self.schedule.step,
            backwards=collector.backwards,
            others=collector.others,
            elsewhere=collector.elsewhere,
            lost=collector.uses.lost,
            moved=self.moves.look(tensors),
            strangers=collector.strangers,
            batches=self.batches.with_gradients,
            pieces=len(collector.borders.pieces),
            marks=self.marks,
            step_after=self.step_after,
            shared=collector.trainer.shared,
            in_closure=collector.uses.in_closure,
            frozen=not any(p.requires_grad for p in tensors),
        )

    @property
    def is_trained_here(self) -> bool:
        """Whether no other thread may be in the middle of a step of this trace."""
        return self.collector.trainer.here_or_gone()

    def _open(self) -> RunInfo:
        settings = self.settings
        started = time.time()
        if settings.folder is not None:
            self.path = self._make_directory(settings.folder)
        info = RunInfo(
            name=settings.name,
            started=started,
            path=self.path,
            rank=settings.rank,
            world_size=settings.world_size,
            parameters=describe_parameters(self.parameters),
            modules=describe_modules(settings.models),
            sampling=asdict(settings.sampling),
            config=dict(settings.config or {}),
            versions=versions(),
        )
        if self.path is not None:
            self.run_log = RunLog(
                self.path,
                info,
                max_bytes=int(settings.max_bytes),
                flush_seconds=TICK,
                on_error=lambda text: self.notes.add("run log", text, warn=True),
            )
        return info

    def _make_directory(self, folder: Path) -> Path | None:
        try:
            return create_run_directory(folder, self.settings.name)
        except OSError as error:
            self.notes.add(
                "run log",
                f"nothing is kept on disk, for {str(folder)!r} cannot be written: {error}; "
                "gradtrace(..., directory=...) names another folder",
                warn=True,
            )
            return None

    def _backlog(self) -> Backlog:
        assert self.path is not None
        return Backlog(self.path)

    def _detectors(self) -> list[Detector]:
        found: list[Detector] = [
            NonFiniteDetector(self.observer.forward_order()),
            self.skipped,
            ClipJudge(),
        ]
        return found if self.spikes is None else [*found, NonPositiveLoss(), self.spikes]

    def undo(self) -> None:
        """Takes back what a start that failed has done; the run's name is free again."""
        self.taps.close()
        if self.background is not None:
            self.background.stop(time.monotonic())
        self.delivery.close(1.0)
        if self.run_log is not None:
            self.run_log.close({}, status="failed to start")
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)


def _steps_to(stats: ClippingStats) -> Callable[[Sequence[Record]], None]:
    def sum_up(records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record, StepRecord):
                stats.update(record)

    return sum_up


def _calling(functions: Sequence[OnSpike], guard: Guard) -> Callable[[Sequence[Record]], None]:
    def call_back(records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record, Spike) and record.duration == 1:
                for function in functions:
                    try:
                        function(record)
                    except Exception as error:
                        guard.failed("an on_spike callback", error)

    return call_back
