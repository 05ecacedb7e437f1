"""The run in MLflow: every step's values, and at the end a summary that compares with other runs.

Rows are the same whenever they are made, and the server keeps identical rows once. So what is sent
again, because an answer was lost or a process died, is not there twice.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from gradtrace.exporters._checks import check_optional_text, check_seconds, needed
from gradtrace.exporters._retry import Unsent
from gradtrace.exporters.mlflow.attempts import Attempts
from gradtrace.exporters.mlflow.curves import Curves
from gradtrace.exporters.mlflow.destination import choose_destination
from gradtrace.exporters.mlflow.ending import send_end
from gradtrace.exporters.mlflow.environment import Environment
from gradtrace.exporters.mlflow.known_run import load_known_run
from gradtrace.exporters.mlflow.tracked_run import Row, TrackedRun
from gradtrace.metrics.layers import Layers, check_layers
from gradtrace.metrics.run_summary import RunTotals
from gradtrace.metrics.step_values import StepValues
from gradtrace.pipeline.redact import redacted
from gradtrace.records import Record, RunInfo, StepRecord

logger = logging.getLogger("gradtrace")

METRICS_A_CALL = 500

# Per process by nature, as the environment is.
_limits = Environment("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")


class MLflowExporter:
    """Sends every step's values, the hyper-parameters, a summary, tags and a figure to MLflow.

    The values go into the run that is active on the thread that starts the trace, or into
    `run_id`, or into a run of its own in `experiment` (MLflow's current one if None), made as soon
    as the server answers. Its own run is ended at the end, a joined one is left as it is. It ends
    as FAILED where the run directory says that an exception ended the loop, as KILLED where the
    training's process is gone before it could say so, else as FINISHED.
    `tracking_uri` is MLflow's own setting if None. `layers`: how many layers beside the groups, or
    globs over their names. NaN and Inf are not sent; `gradtrace/nonfinite_steps` counts them.

    A request to the server takes at most half of `timeout` seconds (1 or more), and so closing
    takes no longer than `timeout`. MLflow has environment variables for that, which are of the
    whole process: unless they are set, MLFLOW_HTTP_REQUEST_TIMEOUT and
    MLFLOW_HTTP_REQUEST_MAX_RETRIES are, from `open` to `close`. With a run of yours active they
    are left alone, for your own calls to MLflow would give up as early: a dead server then holds
    this exporter's thread for minutes, though never the training loop.

    Raises ImportError where neither mlflow-skinny nor mlflow is installed, and TypeError or
    ValueError for settings that are wrong.
    """

    name = "mlflow"

    def __init__(
        self,
        tracking_uri: str | None = None,
        *,
        experiment: str | None = None,
        run_id: str | None = None,
        layers: Layers = 5,
        timeout: float = 10.0,
    ) -> None:
        check_optional_text("tracking_uri", tracking_uri, "such as http://127.0.0.1:5000")
        check_optional_text("experiment", experiment, "the experiment's name")
        check_optional_text("run_id", run_id, "the id of an MLflow run")
        if experiment is not None and run_id is not None:
            raise ValueError(
                f"got experiment={experiment!r} and run_id={run_id!r}; expected one of them: a run "
                "is in an experiment already, so leave out experiment"
            )
        self._timeout = check_seconds("timeout", timeout, "1 or more", least=1.0)
        self._mlflow, self._entities = needed(
            "mlflow", "mlflow.entities", by="MLflowExporter", extra="mlflow"
        )
        self._uri = tracking_uri
        self._experiment = experiment
        self._given = run_id
        self._layer_choice = check_layers(layers)
        self._stack = contextlib.ExitStack()
        self._tracked: TrackedRun | None = None
        self._opened = False
        self.known_as = self.name

    def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
        """The server, without a password, and the experiment, for `gradtrace send`."""
        uri = self._uri or str(self._mlflow.get_tracking_uri())
        named = {"MLFLOW_TRACKING_URI": redacted(uri)}
        if self._experiment is not None:
            named["MLFLOW_EXPERIMENT_NAME"] = self._experiment
        return named, ()

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; of its own run None until the server has answered. Any thread."""
        return self._given if self._tracked is None else self._tracked.run_id

    def open(self, run: RunInfo) -> None:
        """Finds out where to send; asks no server.

        Raises ValueError when an earlier process sent this run to a server that is not MLflow's
        present default, and nobody said which one is meant.
        """
        self._run = run
        self._values = StepValues(run, layers=self._layer_choice)
        self._totals = RunTotals()
        self._curves = Curves()
        self._batch: Unsent[Row] | None = None
        self._last: StepRecord | None = None
        self._opened = True
        known = load_known_run(run.path, self.known_as)
        to = choose_destination(
            self._mlflow,
            run.name,
            tracking_uri=self._uri,
            experiment=self._experiment,
            run_id=self._given,
            known=known,
        )
        self._experiment = to.experiment
        self._tracked = TrackedRun(self._mlflow, self._entities, to, run, self.known_as)
        if known is None:
            self._tracked.save()
        if self._mlflow.active_run() is None:
            self._stack.enter_context(_limits.applied(str(int(max(1.0, self._timeout / 2))), "0"))

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """Sends along how many records the trace's exporters have lost."""
        self._values.watch(dropped)

    def export(self, records: Sequence[Record]) -> None:
        """Sends the steps' values. Raises what MLflow raises when the server does not take them.

        Called again with the same records it goes on behind the last batch the server took.
        """
        assert self._tracked is not None
        if self._batch is None or not self._batch.holds(records):
            self._batch = Unsent(records, [row for r in records for row in self._rows(r)])
        if self._batch.rows:
            self._tracked.connect()
        while self._batch.rows:
            self._tracked.log_metrics(self._batch.rows[:METRICS_A_CALL])
            del self._batch.rows[:METRICS_A_CALL]
        self._batch = None

    def remember(self, records: Sequence[Record]) -> None:
        """Counts what an earlier process has sent."""
        for record in records:
            self._rows(record)

    def close(self) -> None:
        """Sends summary, tags and files, and ends the run if it is its own.

        Takes at most about `timeout` seconds. What fails is logged, in one warning, and holds up
        nothing else. Nothing is sent when no step came, or when steps are left that the server did
        not take: they are to be sent first.
        """
        if not self._opened:
            return
        attempts = Attempts(time.monotonic() + self._timeout / 2)
        try:
            if self._tracked is not None and self._last is not None and self._batch is None:
                summary = self._totals.values()
                send_end(self._tracked, self._run, self._last, summary, self._curves, attempts)
        finally:
            self._stack.close()
            self._opened = False
        if attempts.missing:
            logger.warning(
                "exporter mlflow could not send all of the end of run %s: it lacks %s: %s",
                self._run.name,
                ", ".join(attempts.missing[:5]) + (", ..." if len(attempts.missing) > 5 else ""),
                redacted(f"{type(attempts.error).__name__}: {attempts.error}"),
            )

    def _rows(self, record: Record) -> list[Row]:
        """A record's keys, values, times in milliseconds and steps."""
        values = self._values.update(record)
        self._totals.update(record)
        self._curves.update(record)
        if not isinstance(record, StepRecord):
            return []
        self._last = record
        when = int(record.time * 1000)
        return [(key, value, when, record.step) for key, value in (values or {}).items()]
