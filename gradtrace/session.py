"""`gradtrace(...)` and the `Trace` it returns: what users hold in their hands."""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradtrace import options
from gradtrace.background import TICK, Background
from gradtrace.collector import Collector
from gradtrace.detect.clipping import ClippingStats, ClippingSummary
from gradtrace.detect.nonfinite import NonFiniteDetector
from gradtrace.detect.skipped import SkippedStepDetector
from gradtrace.exporter import Exporter, resolve_exporters
from gradtrace.guard import Guard
from gradtrace.measure.handoff import Handoff
from gradtrace.measure.parameters import Parameters
from gradtrace.openstep import LateLog, RawStep
from gradtrace.pipeline import ExporterWorker, close_all, unique_names
from gradtrace.recent import Recent
from gradtrace.records import Event, RunInfo, RunNote, StepRecord
from gradtrace.runlog import (
    Backlog,
    RunLog,
    check_run_name,
    create_run_directory,
    refuse_taken,
)
from gradtrace.sampling import Sampling
from gradtrace.watch import Watch

logger = logging.getLogger("gradtrace")

_DRAIN = 5.0
"""Seconds that closing waits for values still on an accelerator."""


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
    `directory`: where run directories go; None keeps nothing on disk. `run`: the run's name.
    `config`: hyper-parameters to record. `max_bytes`: the run directory's size, kept by thinning
    old steps. `close_timeout`: how many seconds leaving the `with` waits for exporters.

    Raises TypeError or ValueError for wrong arguments, here and never in the loop.
    """
    return Trace(
        model,
        exporters=exporters,
        loader=loader,
        sample_ids=sample_ids,
        sampling=Sampling() if sampling is None else sampling,
        directory=directory,
        run=run,
        config=config,
        max_bytes=max_bytes,
        close_timeout=close_timeout,
    )


class Trace:
    """A running, or not yet started, or ended trace. Made by `gradtrace(...)`."""

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        *,
        exporters: Sequence[Exporter | str],
        loader: DataLoader[Any] | Sequence[DataLoader[Any]] | None,
        sample_ids: Callable[[Any], Any] | None,
        sampling: Sampling,
        directory: str | os.PathLike[str] | None,
        run: str | None,
        config: Mapping[str, Any] | None,
        max_bytes: int,
        close_timeout: float,
    ) -> None:
        self._models = options.check_models(model)
        if not isinstance(sampling, Sampling):
            raise TypeError(
                f"sampling is a {type(sampling).__name__}; expected gradtrace.Sampling(...)"
            )
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(
                f"config is a {type(config).__name__}; expected a mapping of hyper-parameters: "
                "use vars(args) for an argparse namespace"
            )
        options.check_positive("max_bytes", max_bytes, "bytes")
        options.check_positive("close_timeout", close_timeout, "seconds")
        self._loaders = options.check_loaders(loader)
        self._sample_ids = options.check_callable("sample_ids", sample_ids)
        self._exporters = resolve_exporters(exporters)
        self._sampling = sampling
        self._directory = options.check_directory(directory)
        self._config = dict(config or {})
        self._max_bytes = int(max_bytes)
        self._close_timeout = float(close_timeout)
        self.rank, self._world_size = options.rank_and_world()
        self.name = options.new_run_name() if run is None else run
        if self.rank and run is not None:
            # Every rank writes a directory of its own.
            self.name = f"{run}.rank{self.rank}"
        check_run_name(self.name)
        if self._directory is not None:
            refuse_taken(self._directory, self.name)
        self._notes: list[RunNote] = []
        self._recent = Recent()
        self._stats = ClippingStats()
        self._guard = Guard(self._on_internal_error)
        self._parameters = Parameters(self._models, sampling)
        if not self._parameters.names:
            raise ValueError(
                f"no parameter matches Sampling(include={sampling.include!r}, "
                f"exclude={sampling.exclude!r}); the model has, for instance, "
                f"{next(n for m in self._models.values() for n, _ in m.named_parameters())!r}"
            )
        self._path: Path | None = None
        self._taps = ExitStack()
        self._workers: list[ExporterWorker] = []
        self._run_log: RunLog | None = None
        self._background: Background | None = None
        self._watch: Watch | None = None
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
            raise
        self._state = "running"
        atexit.register(self.close)
        return self

    def _start(self) -> None:
        started = time.time()
        if self._directory is not None:
            self._path = self._make_directory(self._directory)
        info = RunInfo(
            name=self.name,
            started=started,
            path=self._path,
            rank=self.rank,
            world_size=self._world_size,
            parameters=_describe_parameters(self._parameters),
            modules=_describe_modules(self._models),
            sampling=asdict(self._sampling),
            config=self._config,
            versions=options.versions(),
        )
        if self._path is not None:
            self._run_log = RunLog(
                self._path,
                info,
                max_bytes=self._max_bytes,
                flush_seconds=TICK,
                on_error=self._on_disk_trouble,
            )
        for exporter, name in zip(self._exporters, unique_names(self._exporters), strict=True):
            exporter.open(info)
            backlog = None if self._path is None else Backlog(self._path)
            worker = ExporterWorker(exporter, name=name, backlog=backlog, run=self._path)
            self._workers.append(worker)
        handoff: Handoff[RawStep | LateLog] = Handoff()
        self._handoff = handoff
        self._collector = Collector(
            self._parameters,
            self._sampling,
            handoff,
            rank=self.rank,
            overhead=lambda: self._guard.seconds,
            note=self._note,
        )
        watch = Watch(
            self._collector,
            self._models,
            self._sampling,
            self._guard,
            self._note,
            self._sample_ids,
        )
        self._watch = watch
        self._background = Background(
            handoff,
            [NonFiniteDetector(watch.forward_order()), SkippedStepDetector()],
            [self._recent.add, self._sum_up]
            + ([self._run_log.append] if self._run_log is not None else [])
            + [worker.offer for worker in self._workers],
            self._guard,
            name=f"gradtrace-{self.name}",
            tick=self._run_log.flush if self._run_log is not None else _nothing,
        )
        for worker in self._workers:
            worker.start()
        self._background.start()
        watch.attach(self._taps, self._loaders)
        if any(hasattr(p, "to_local") for p in self._parameters.tensors) or any(
            type(module).__name__ == "FullyShardedDataParallel"
            for model in self._models.values()
            for module in model.modules()
        ):
            self._note(
                "parameters",
                "parameters may be sharded over ranks: statistics are of this rank's part",
            )

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
        atexit.unregister(self.close)
        self._taps.close()
        self._guard.wrap("closing the last step", self._collector.finish)()
        assert self._background is not None
        self._background.stop(time.monotonic() + _DRAIN)
        if self._run_log is not None:
            self._run_log.flush()
        for name, owed in close_all(self._workers, self._close_timeout).items():
            if owed:
                self._note(
                    f"exporter {name}",
                    f"exporter {name!r} still owes {owed}"
                    + (
                        f": deliver it with `gradtrace send {self._path} --to {name}`"
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
        copies: dict[str, float | Tensor] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise TypeError(
                        f"log({name}=...) got a tensor of shape {tuple(value.shape)}; expected one "
                        "value: reduce it first, for instance with .mean()"
                    )
                copies[name] = value.detach().clone()
            else:
                try:
                    copies[name] = float(value)
                except (TypeError, ValueError):
                    raise TypeError(
                        f"log({name}=...) got a {type(value).__name__}; expected a float or a "
                        "0-dim tensor"
                    ) from None
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


def _nothing() -> None:
    pass


def _describe_parameters(parameters: Parameters) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(p.shape),
            "dtype": str(p.dtype).removeprefix("torch."),
            "device": str(p.device),
            "trainable": p.requires_grad,
        }
        for name, p in zip(parameters.names, parameters.tensors, strict=True)
    ]


def _describe_modules(models: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    return [
        {"name": ".".join(part for part in (prefix, name) if part), "type": type(module).__name__}
        for prefix, model in models.items()
        for name, module in model.named_modules()
    ]
