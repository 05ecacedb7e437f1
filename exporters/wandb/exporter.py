"""The run in Weights & Biases: every step's values, spikes as alerts and as a table, a summary.

It is a run of its own beside the user's, for W&B orders rows by a step number that only rises:
rows of ours among the user's would make theirs vanish.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from gradtrace.exporters._ending import how_it_ended
from gradtrace.exporters._keys import clean_key
from gradtrace.exporters._retry import is_same
from gradtrace.exporters.wandb import core
from gradtrace.exporters.wandb.texts import (
    COLUMNS,
    MAX_TEXT,
    likely,
    plain,
    plain_config,
    spike_row,
)
from gradtrace.metrics.layers import Layers, check_layers
from gradtrace.metrics.run_summary import RunTotals
from gradtrace.metrics.step_values import PREFIX, StepValues
from gradtrace.records import Record, RunInfo, Spike, StepRecord

logger = logging.getLogger("gradtrace")

MODES = ("online", "offline", "disabled")
STEP = PREFIX + "step"
TABLE = PREFIX + "spike_table"
MAX_SPIKES = 1000
MAX_NAME = 128

FLUSH = 1.0
"""Seconds after which wandb-core writes what it has to its file."""

KEEP, KEEP_ROWS = 5.0, 512
"""Seconds, and how many rows, that are sent again when wandb-core dies: more than it had to
write."""

ALERT_WITHIN = 600.0
"""Seconds after which a spike is history and alerts nobody."""

OPEN_WITHIN = 10.0
EXIT_WITHIN = 5.0


class WandbExporter:
    """Sends every step's values, the hyper-parameters, spikes and a summary to W&B.

    A W&B run of its own stands beside the one that is active when the trace starts, in the same
    project, mode and group (that run's group, or its id where it has none); `wandb.run` stays the
    user's. `project`, `mode` ("online", "offline" or "disabled"), `group` and `name` are W&B's, and
    `directory` is where its folder `wandb` goes; what is None follows the active run, then W&B's
    environment variables. `layers`: how many layers beside the groups, or globs over their names.
    `gradtrace/step` is the x axis of all. On steps that `Sampling(histograms=...)` samples, the
    layers' gradients are histograms, `gradtrace/layers/<name>/gradients`. Each spike is an alert
    and, at the end, a row of the table `gradtrace/spike_table`.

    `attach=True` logs into the active run instead, with `commit=False`. Then rows ride on the
    user's own next commit: of steps between two commits only the newest value of each key is
    kept, and what comes after the last commit is lost with nobody being told. W&B keeps
    the run's order and its end to the user.

    A run that an exception ended, or that was killed and is sent later, has failed in W&B, too.

    Online, the run is made by the exporter's thread, which takes at most about `timeout` seconds
    (1 or more) if no server answers, and is tried again. At the end W&B has a minute to upload; the
    rest stays on disk for `wandb sync`.

    W&B's work is done by a process, wandb-core. If it dies, a new one goes on in a new run of the
    same group. The rows of the last 5 seconds (at most 512) are sent again there, so a step may be
    in both; lost is what the dead one had not written for longer than that, and its summary and
    alerts. If it hangs, so does this exporter's thread, but neither training nor, for more than 5
    seconds, the interpreter's exit; with a run of the user's in it, W&B itself waits at exit.

    Raises ImportError where wandb is not installed, and TypeError or ValueError for settings that
    are wrong.
    """

    name = "wandb"
    settling = 2 * FLUSH
    """Seconds after which wandb-core has written what it was given."""

    def __init__(
        self,
        *,
        project: str | None = None,
        mode: str | None = None,
        attach: bool = False,
        directory: str | os.PathLike[str] | None = None,
        layers: Layers = 20,
        group: str | None = None,
        name: str | None = None,
        timeout: float = 15.0,
    ) -> None:
        for option, value in (("project", project), ("group", group), ("name", name)):
            _check_text(option, value)
        if mode not in (None, *MODES):
            expected = ", ".join(repr(mode) for mode in MODES)
            raise ValueError(f"mode is {mode!r}; expected one of {expected}: or leave it out")
        if not isinstance(attach, bool):
            raise TypeError(f"attach is {attach!r}; expected True or False")
        own = {"project": project, "mode": mode, "directory": directory, "group": group}
        given = [option for option, value in (own | {"name": name}).items() if value is not None]
        if attach and given:
            raise ValueError(
                f"got attach=True and {given[0]}; expected one of them: the active run has all of "
                f"that already, so leave out {', '.join(given)}"
            )
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise TypeError(f"timeout is {timeout!r}; expected seconds, 1 or more")
        if not 1 <= timeout < math.inf:
            raise ValueError(f"timeout is {timeout!r}; expected seconds, 1 or more")
        try:
            self._wandb: Any = import_module("wandb")
        except ImportError as error:
            raise ImportError(
                f"WandbExporter needs a package that is not installed ({error}): "
                "pip install 'gradtrace[wandb]'",
                name=error.name,
            ) from error
        self._project = project
        self._mode = mode
        self._attach = attach
        self._directory = None if directory is None else os.fspath(directory)
        self._layers = check_layers(layers)
        self._group = group
        self._run_name = name
        self._timeout = float(timeout)
        self._wandb_run: Any = None
        self._beside: Any = None
        self._starting = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._opened = False

    def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
        """W&B's own variables for what was chosen here, for `gradtrace send`."""
        beside = self._beside
        chosen = {
            "WANDB_PROJECT": self._project or (None if beside is None else beside.project),
            "WANDB_MODE": self._mode,
            "WANDB_RUN_GROUP": self._group,
            "WANDB_NAME": self._run_name,
            "WANDB_DIR": self._directory,
        }
        return {key: str(value) for key, value in chosen.items() if value}, ()

    @property
    def run(self) -> Any:
        """The `wandb.Run` that the values go into: the newest, if wandb-core died; its `id`, `dir`
        and `url` tell where it is. Online None until the server has answered. Any thread.
        """
        return self._wandb_run

    def open(self, run: RunInfo) -> None:
        """Takes the active run; makes one of its own where that needs no server.

        Waits at most 10 seconds: what has not been done by then, the exporter's thread does.
        Raises ValueError when there is no active run to attach to, when nobody has logged in to
        W&B, and inside a W&B sweep, where a process can have one run only.
        """
        self._info = run
        self._values = StepValues(run, layers=self._layers, finite=False)
        self._totals = RunTotals()
        self._spikes: dict[tuple[int, str, int], Spike] = {}
        self._last: StepRecord | None = None
        self._batch: list[Record] = []
        self._rows: deque[dict[str, Any]] = deque()
        self._alerts: deque[Spike] = deque()
        self._sent: deque[tuple[float, dict[str, Any]]] = deque()
        self._beside = self._wandb.run
        self._ready = False
        self._wandb_run = None
        if self._attach:
            if self._beside is None:
                raise ValueError(
                    "got attach=True and no W&B run is active; expected one: call wandb.init() "
                    "before the trace starts, or leave out attach"
                )
            self._wandb_run = self._beside
        else:
            self._in_time(self._prepare, OPEN_WITHIN)
            self._watch_exit()
        self._opened = True

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """Sends along how many records the trace's exporters have lost."""
        self._values.watch(dropped)

    def export(self, records: Sequence[Record]) -> None:
        """Logs the steps' values and waits until wandb-core has them. Raises what W&B raises.

        Called again with the same records it goes on behind the last one that was taken.
        """
        if not is_same(self._batch, records):
            self._batch = list(records)
            for record in records:
                self._rows.extend(self._take(record))
                if isinstance(record, Spike) and record.duration == 1 and _is_fresh(record):
                    self._alerts.append(record)
        if self._rows or self._alerts:
            with self._calling():
                self._deliver()
        self._batch = []

    def remember(self, records: Sequence[Record]) -> None:
        """Counts what an earlier process has sent."""
        for record in records:
            self._take(record)

    def close(self) -> None:
        """Logs the table of spikes and the summary, and ends the run if it is its own.

        What fails is logged. Records that W&B has not taken keep the summary from being written:
        they are to be sent first.
        """
        if not self._opened:
            return
        self._opened = False
        try:
            with self._calling():
                self._finish()
        except Exception as error:
            logger.warning(
                "exporter wandb could not send all of the end of run %s: %s: %s",
                self._info.name,
                type(error).__name__,
                error,
            )
        finally:
            atexit.unregister(self._on_exit)

    # -- records ---

    def _take(self, record: Record) -> list[dict[str, Any]]:
        values = self._values.update(record)
        self._totals.update(record)
        if isinstance(record, Spike):
            self._spikes[record.step, record.signal, record.rank] = record
            if len(self._spikes) > MAX_SPIKES:
                del self._spikes[next(iter(self._spikes))]
        if not isinstance(record, StepRecord) or values is None:
            return []
        self._last = record
        row: dict[str, Any] = {clean_key(key): value for key, value in values.items()}
        for key, histogram in self._values.histograms(record).items():
            row[clean_key(key)] = self._wandb.Histogram(np_histogram=histogram)
        return [row]

    def _deliver(self) -> None:
        """Sends, and if the run is lost on the way, once more: the trace may be about to end."""
        before = self._wandb_run
        try:
            self._send()
        except Exception:
            if before is None or self._wandb_run is not None:
                raise
            self._send()

    def _send(self) -> None:
        run = self._start()
        try:
            if not self._ready:
                run.define_metric(PREFIX + "*", step_metric=STEP)
                self._ready = True
            while self._rows:
                run.log(self._rows[0], commit=not self._attach)
                now = time.monotonic()
                self._sent.append((now, self._rows.popleft()))
                while len(self._sent) > KEEP_ROWS or self._sent[0][0] < now - KEEP:
                    self._sent.popleft()
            while self._alerts:
                self._alert(run, self._alerts[0])
                self._alerts.popleft()
            # A dead core takes rows without a word for a while, but it does not answer.
            run.status()
        except Exception as error:
            self._give_up(error)
            raise

    def _alert(self, run: Any, spike: Spike) -> None:
        cause = likely(spike)
        text = f"Step {spike.step} of {self._info.name}: {spike.message}"
        run.alert(
            title=f"Spike in {spike.signal}"[:63],
            text=plain(text + (f"\nLikely: {cause}" if cause else ""), MAX_TEXT),
            level="WARN",
        )

    def _give_up(self, error: Exception) -> None:
        """A run that fails for good is left; the next one begins with what it may have lost."""
        if self._attach or not core.is_lost(error):
            return
        logger.warning(
            "exporter wandb: W&B run %s is lost (%s: %s); run %s goes on in another one",
            getattr(self._wandb_run, "id", None),
            type(error).__name__,
            error,
            self._info.name,
        )
        self._rows.extendleft(row for _, row in reversed(self._sent))
        self._sent.clear()
        self._wandb_run, self._ready = None, False

    def _finish(self) -> None:
        if self._batch or self._last is None:
            if not self._attach and self._wandb_run is not None:
                self._end(self._wandb_run)
        else:
            try:
                self._sum_up()
            except Exception as error:
                if self._wandb_run is not None:
                    self._give_up(error)
                if self._wandb_run is not None:
                    raise
                self._sum_up()

    def _sum_up(self) -> None:
        self._send()
        run = self._start()
        if self._spikes:
            table = self._wandb.Table(
                columns=list(COLUMNS), data=[spike_row(spike) for spike in self._spikes.values()]
            )
            run.log({TABLE: table}, commit=not self._attach)
        run.summary.update(self._totals.values())
        if not self._attach:
            self._end(run)

    def _end(self, run: Any) -> None:
        status = how_it_ended(self._info.path)
        # W&B shows a run as failed that ends with another code than 0.
        run.finish(exit_code=int(status == "killed" or status.startswith("ended by ")))

    # -- the W&B run ---

    def _prepare(self) -> None:
        """What can be done before the first record: an offline run is made, a login looked for."""
        settings = self._wandb.setup().settings
        if settings.sweep_id:
            raise ValueError(
                f"this process runs in W&B's sweep {settings.sweep_id}, where it can have one run "
                "only: call wandb.init() before the trace, and use WandbExporter(attach=True)"
            )
        if self._resolved_mode(settings) == "online":
            self._check_login()
        else:
            self._start()

    def _resolved_mode(self, settings: Any) -> str:
        beside = self._beside
        mode = self._mode or (settings if beside is None else beside.settings).mode
        return {"dryrun": "offline", "run": "online"}.get(str(mode), str(mode))

    def _check_login(self) -> None:
        # W&B would ask for a key in the terminal, in the middle of the training's output.
        if not self._wandb.login(verify=False, prompt=False):
            raise ValueError(
                "nobody is logged in to W&B: run `wandb login`, set WANDB_API_KEY, or use "
                'WandbExporter(mode="offline")'
            )

    def _start(self) -> Any:
        """The run; made if there is none. Waits for another thread that is making it."""
        with self._starting:
            if self._wandb_run is None:
                try:
                    run = self._init()
                except Exception as error:
                    # W&B's own errors tell of servers and settings; with others the core is gone.
                    if isinstance(error, self._wandb.Error) or not core.is_lost(error):
                        raise
                    core.renew(self._wandb)
                    run = self._init()
                core.set_aside(self._wandb, run)
                self._watch_exit()
                self._wandb_run = run
            return self._wandb_run

    def _init(self) -> Any:
        settings, beside, info = self._wandb.setup().settings, self._beside, self._info
        mode = self._resolved_mode(settings)
        if mode == "online":
            self._check_login()
        group = self._group
        if group is None and beside is not None:
            group = beside.group or beside.id
        if group is None and info.world_size > 1:
            group = settings.run_group or info.name
        name = self._run_name or info.name
        if info.world_size > 1:
            name = f"{name[: MAX_NAME - 12]}-rank{info.rank}"
        whole = {
            # The user's prints shall not wait for a core that hangs.
            "console": "off",
            "x_disable_stats": beside is not None,
        } | self._unless_set(settings)
        return self._wandb.init(
            reinit="create_new",
            # The environment may name the user's run: it is not to be joined.
            id=uuid.uuid4().hex[:12],
            resume="never",
            job_type="gradtrace",
            project=self._project or (beside.project if beside is not None else None),
            entity=beside.entity if beside is not None and self._project is None else None,
            mode=mode,
            dir=self._directory,
            group=None if group is None else plain(group, MAX_NAME),
            name=plain(name, MAX_NAME),
            config=plain_config(info.config),
            settings=self._wandb.Settings(**whole),
        )

    def _unless_set(self, settings: Any) -> dict[str, Any]:
        wanted = {
            "x_transaction_log_flush_interval": FLUSH,
            "init_timeout": self._timeout,
            "finish_timeout": 60.0,
            "silent": True,
        }
        return {key: v for key, v in wanted.items() if key not in settings.model_fields_set}

    # -- not being held up ---

    def _in_time(self, work: Any, seconds: float) -> None:
        """Does this in a thread, and raises its ValueErrors, unless it takes longer."""
        errors: list[Exception] = []

        def run() -> None:
            try:
                work()
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="gradtrace-open-wandb", daemon=True)
        thread.start()
        thread.join(seconds)
        for error in errors:
            if isinstance(error, (ValueError, self._wandb.errors.UsageError)):
                raise error
            logger.warning(
                "exporter wandb: a run cannot be made, and is tried again: %s: %s",
                type(error).__name__,
                error,
            )

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()

    def _watch_exit(self) -> None:
        # Hooks run last in, first out: ours before that of the core just started.
        atexit.unregister(self._on_exit)
        atexit.register(self._on_exit)

    def _on_exit(self) -> None:
        if not self._idle.wait(EXIT_WITHIN):
            core.call_off_exit(self._wandb)


def _is_fresh(spike: Spike) -> bool:
    return time.time() - spike.time < ALERT_WITHIN


def _check_text(option: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{option} is {value!r}; expected a string: or leave it out")
    if not value:
        raise ValueError(f"{option} is empty; expected some text: or leave it out")
