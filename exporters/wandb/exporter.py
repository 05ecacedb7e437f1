"""The run in Weights & Biases: every step's values, spikes as alerts and as a table, a summary.

It is a run of its own beside the user's, for W&B orders rows by a step number that only rises:
rows of ours among the user's would make theirs vanish.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradtrace.exporters._checks import check_optional_text, check_seconds, needed
from gradtrace.exporters._ending import how_it_ended
from gradtrace.exporters._retry import is_same
from gradtrace.exporters.wandb.exit_guard import ExitGuard
from gradtrace.exporters.wandb.own_run import FLUSH, AttachedRun, Options, OwnRun
from gradtrace.exporters.wandb.sender import Sender
from gradtrace.exporters.wandb.texts import COLUMNS, spike_row
from gradtrace.metrics.layers import Layers, check_layers
from gradtrace.metrics.run_summary import RunTotals
from gradtrace.metrics.step_values import PREFIX, StepValues
from gradtrace.records import Record, RunInfo, Spike, StepRecord

logger = logging.getLogger("gradtrace")

MODES = ("online", "offline", "disabled")
TABLE = PREFIX + "spike_table"
MAX_SPIKES = 1000

ALERT_WITHIN = 600.0
"""Seconds after which a spike is history and alerts nobody."""

OPEN_WITHIN = 10.0


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
        project: str | None = None,
        *,
        mode: str | None = None,
        attach: bool = False,
        directory: str | os.PathLike[str] | None = None,
        layers: Layers = 20,
        group: str | None = None,
        name: str | None = None,
        timeout: float = 15.0,
    ) -> None:
        for option, value in (("project", project), ("group", group), ("name", name)):
            check_optional_text(option, value, "some text")
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
        self._options = Options(
            project=project,
            mode=mode,
            directory=None if directory is None else os.fspath(directory),
            group=group,
            name=name,
            timeout=check_seconds("timeout", timeout, "1 or more", least=1.0),
        )
        [self._wandb] = needed("wandb", by="WandbExporter", extra="wandb")
        self._attach = attach
        self._layers = check_layers(layers)
        self._beside: Any = None
        self._to: OwnRun | AttachedRun | None = None
        self._opened = False

    def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
        """W&B's own variables for what was chosen here, for `gradtrace send`."""
        options, beside = self._options, self._beside
        chosen = {
            "WANDB_PROJECT": options.project or (None if beside is None else beside.project),
            "WANDB_MODE": options.mode,
            "WANDB_RUN_GROUP": options.group,
            "WANDB_NAME": options.name,
            "WANDB_DIR": options.directory,
        }
        return {key: str(value) for key, value in chosen.items() if value}, ()

    @property
    def run(self) -> Any:
        """The `wandb.Run` that the values go into: the newest, if wandb-core died; its `id`, `dir`
        and `url` tell where it is. Online None until the server has answered. Any thread.
        """
        return None if self._to is None else self._to.run

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
        self._beside = self._wandb.run
        self._guard = ExitGuard(self._wandb)
        if not self._attach:
            own = OwnRun(self._wandb, self._options, run, self._beside, self._guard)
            self._to = own
            own.prepare(OPEN_WITHIN)
        elif self._beside is None:
            raise ValueError(
                "got attach=True and no W&B run is active; expected one: call wandb.init() "
                "before the trace starts, or leave out attach"
            )
        else:
            self._to = AttachedRun(self._beside)
        self._sender = Sender(self._to, run.name)
        self._guard.watch()
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
                self._sender.rows.extend(self._take(record))
                if isinstance(record, Spike) and record.duration == 1 and _is_fresh(record):
                    self._sender.alerts.append(record)
        if self._sender.rows or self._sender.alerts:
            with self._guard.calling():
                self._sender.deliver()
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
            with self._guard.calling():
                self._finish()
        except Exception as error:
            logger.warning(
                "exporter wandb could not send all of the end of run %s: %s: %s",
                self._info.name,
                type(error).__name__,
                error,
            )
        finally:
            self._guard.unwatch()

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
        row: dict[str, Any] = dict(values)
        for key, histogram in self._values.histograms(record).items():
            row[key] = self._wandb.Histogram(np_histogram=histogram)
        return [row]

    def _finish(self) -> None:
        assert self._to is not None
        if self._batch or self._last is None:
            self._to.end(how_it_ended(self._info.path))
            return
        try:
            self._sum_up(self._to)
        except Exception as error:
            if self._to.run is not None:
                self._sender.give_up(error)
            if self._to.run is not None:
                raise
            self._sum_up(self._to)

    def _sum_up(self, to: OwnRun | AttachedRun) -> None:
        run = self._sender.send()
        if self._spikes:
            table = self._wandb.Table(
                columns=list(COLUMNS), data=[spike_row(spike) for spike in self._spikes.values()]
            )
            run.log({TABLE: table}, commit=to.commit)
        run.summary.update(self._totals.values())
        to.end(how_it_ended(self._info.path))


def _is_fresh(spike: Spike) -> bool:
    return time.time() - spike.time < ALERT_WITHIN
