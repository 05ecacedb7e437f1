"""The run in MLflow: every step's values, and at the end a summary that compares with other runs.

Rows are the same whenever they are made, and the server keeps identical rows once. So what is sent
again, because an answer was lost or a process died, is not there twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gradtrace.exporters._ending import how_it_ended
from gradtrace.exporters._keys import clean_key, flat_params, run_mark
from gradtrace.exporters._retry import Unsent
from gradtrace.exporters.mlflow.attempts import Attempts
from gradtrace.exporters.mlflow.curves import Curves
from gradtrace.exporters.mlflow.environment import Environment
from gradtrace.metrics.layers import Layers, check_layers
from gradtrace.metrics.run_summary import RunTotals
from gradtrace.metrics.step_values import StepValues
from gradtrace.pipeline.redact import redacted
from gradtrace.records import Record, RunInfo, StepRecord

logger = logging.getLogger("gradtrace")

"""In the run directory: which MLflow run this is, for a process that sends the rest."""

METRICS_A_CALL = 500
PARAMS_A_CALL = 100
ID_TAG = "gradtrace.id"
_ENDS = {"killed": "KILLED"}


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
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        run_id: str | None = None,
        layers: Layers = 5,
        timeout: float = 10.0,
    ) -> None:
        _check_text("tracking_uri", tracking_uri, "such as http://127.0.0.1:5000")
        _check_text("experiment", experiment, "the experiment's name")
        _check_text("run_id", run_id, "the id of an MLflow run")
        if experiment is not None and run_id is not None:
            raise ValueError(
                f"got experiment={experiment!r} and run_id={run_id!r}; expected one of them: a run "
                "is in an experiment already, so leave out experiment"
            )
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise TypeError(f"timeout is {timeout!r}; expected seconds, 1 or more")
        if not 1 <= timeout < math.inf:
            raise ValueError(f"timeout is {timeout!r}; expected seconds, 1 or more")
        try:
            self._mlflow: Any = import_module("mlflow")
            self._entities: Any = import_module("mlflow.entities")
        except ImportError as error:
            raise ImportError(
                f"MLflowExporter needs a package that is not installed ({error}): "
                "pip install 'gradtrace[mlflow]'",
                name=error.name,
            ) from error
        self._uri = tracking_uri
        self._experiment = experiment
        self._given = self._run_id = run_id
        self._layer_choice = check_layers(layers)
        self._timeout = float(timeout)
        self._stack = contextlib.ExitStack()
        self._client: Any = None
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
        return self._run_id

    def open(self, run: RunInfo) -> None:
        """Finds out where to send; asks no server.

        Raises ValueError when an earlier process sent this run to a server that is not MLflow's
        present default, and nobody said which one is meant.
        """
        self._run = run
        self._values = StepValues(run, layers=self._layer_choice)
        self._totals = RunTotals()
        self._curves = Curves()
        self._params = flat_params(run.config)
        self._batch: Unsent[tuple[str, float, int, int]] | None = None
        self._last: StepRecord | None = None
        self._ready = False
        self._opened = True
        current = str(self._mlflow.get_tracking_uri())
        here = self._uri in (None, current)
        stored = _load(run.path, self.known_as)
        self._check_server(stored, current)
        active = self._mlflow.active_run()
        self._server = self._uri or current
        self._run_id = self._given
        self._own = False
        if self._given is None and stored is not None:
            self._run_id, self._own = stored["run_id"], stored["own"]
        elif self._given is None and active is not None and here:
            self._run_id = active.info.run_id
            if self._experiment is not None:
                logger.warning(
                    "exporter mlflow: run %s goes into MLflow's active run, wherever that is; "
                    "experiment=%r is for a run of its own",
                    run.name,
                    self._experiment,
                )
        # set_experiment() leaves its choice in the first, whatever the second says.
        self._experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") if here else None
        if self._experiment is None and self._experiment_id is None and here:
            self._experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if self._run_id is not None and stored is None:
            self._store()
        if active is None:
            self._stack.enter_context(_limits.applied(str(int(max(1.0, self._timeout / 2))), "0"))

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """Sends along how many records the trace's exporters have lost."""
        self._values.watch(dropped)

    def export(self, records: Sequence[Record]) -> None:
        """Sends the steps' values. Raises what MLflow raises when the server does not take them.

        Called again with the same records it goes on behind the last batch the server took.
        """
        if self._batch is None or not self._batch.holds(records):
            self._batch = Unsent(records, [row for r in records for row in self._rows(r)])
        if self._batch.rows:
            self._connect()
        while self._batch.rows:
            self._send(self._batch.rows[:METRICS_A_CALL])
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
            if self._last is not None and self._batch is None:
                self._finish(self._last, attempts)
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

    # -- records ---

    def _rows(self, record: Record) -> list[tuple[str, float, int, int]]:
        """A record's keys, values, times in milliseconds and steps."""
        values = self._values.update(record)
        self._totals.update(record)
        self._curves.update(record)
        if not isinstance(record, StepRecord):
            return []
        self._last = record
        when = int(record.time * 1000)
        return [(key, value, when, record.step) for key, value in (values or {}).items()]

    def _send(self, rows: Sequence[tuple[str, float, int, int]]) -> None:
        metric = self._entities.Metric
        metrics = [metric(clean_key(key), value, when, step) for key, value, when, step in rows]
        self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)

    # -- the MLflow run ---

    def _connect(self) -> None:
        """Finds or makes the run and gives it its parameters. Each part can be tried again."""
        if self._ready:
            return
        if self._client is None:
            self._client = self._mlflow.MlflowClient(tracking_uri=self._server)
        run = self._known_run() or self._found_or_made()
        self._run_id = run.info.run_id
        self._store()
        self._log_params(dict(run.data.params))
        self._ready = True

    def _known_run(self) -> Any:
        """The run whose id is known, None if there is none or it came from another server."""
        if self._run_id is None:
            return None
        try:
            run = self._client.get_run(self._run_id)
        except self._mlflow.exceptions.MlflowException as error:
            if self._given is not None or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is not None and (self._given or run.info.lifecycle_stage != "deleted"):
            return run
        logger.warning(
            "exporter mlflow: run %s of MLflow is gone, or never was on this server; run %s goes "
            "into one of its own",
            self._run_id,
            self._run.name,
        )
        self._run_id = None
        return None

    def _found_or_made(self) -> Any:
        """A run of our own: one of an earlier try, whose answer was lost, or a new one."""
        run = self._run
        second = [self.known_as] if self.known_as != self.name else []
        mark = run_mark(run, *second)[:32]
        experiment = self._find_experiment()
        self._own = True
        found = self._client.search_runs(
            [experiment],
            filter_string=f"tags.`{ID_TAG}` = '{mark}'",
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        if found:
            return found[0]
        return self._client.create_run(
            experiment,
            start_time=int(run.started * 1000),
            tags={ID_TAG: mark, "gradtrace.status": "running", **self._tags()},
            run_name=run.name[:250],
        )

    def _find_experiment(self) -> str:
        if self._experiment is None:
            return self._experiment_id or "0"
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._experiment))

    def _log_params(self, known: dict[str, str]) -> None:
        """The parameters that are not there yet. One that is refused does not hold up the run."""
        param = self._entities.Param
        refused = [key for key, text in self._params.items() if known.get(key, text) != text]
        fresh = [param(key, text) for key, text in self._params.items() if key not in known]
        for start in range(0, len(fresh), PARAMS_A_CALL):
            some = fresh[start : start + PARAMS_A_CALL]
            # One parameter that was set in between makes the server refuse all.
            for group in (some, *([one] for one in some)):
                try:
                    self._client.log_batch(self._run_id, params=group, synchronous=True)
                except self._mlflow.exceptions.MlflowException as error:
                    if error.error_code != "INVALID_PARAMETER_VALUE":
                        raise
                    refused += [group[0].key] if group is not some else []
                else:
                    if group is some:
                        break
        if refused:
            logger.warning(
                "exporter mlflow: parameters that MLflow's run has with other values stay as they "
                "are there: %s",
                ", ".join(refused[:10]) + (", ..." if len(refused) > 10 else ""),
            )

    def _tags(self) -> dict[str, str]:
        return {
            "gradtrace.run": self._run.name[:500],
            "gradtrace.version": self._run.versions.get("gradtrace", "unknown"),
            "gradtrace.rank": str(self._run.rank),
        }

    # -- the end ---

    def _finish(self, last: StepRecord, attempts: Attempts) -> None:
        if not attempts.works(self._connect):
            attempts.missing.append("all of it")
            return
        when = int(last.time * 1000)
        summary = self._totals.values()
        status = how_it_ended(self._run.path)
        rows = [(key, value, when, last.step + 1) for key, value in summary.items()]
        if not attempts.works(lambda: self._send(rows)):
            # The file store has no key below another: gradtrace/grad_norm is a file there.
            for row in rows:
                attempts.attempt(row[0], partial(self._send, [row]))
        if self._own:
            # Also when time is over, which is half of the timeout: a run left open looks alive.
            attempts.attempt("its end", lambda: self._terminate(status, when), always=True)
        tags = self._tags() | {
            "gradtrace.spikes": str(int(summary["gradtrace/spikes"])),
            "gradtrace.status": status,
        }
        made = [self._entities.RunTag(*item) for item in tags.items()]
        attempts.attempt(
            "tags", lambda: self._client.log_batch(self._run_id, tags=made, synchronous=True)
        )
        attempts.attempt("files", lambda: self._send_files(attempts))

    def _terminate(self, status: str, when: int) -> None:
        # As MLflow's own `with start_run()` ends.
        how = "FAILED" if status.startswith("ended by ") else _ENDS.get(status, "FINISHED")
        with _quiet.applied("true"):
            self._client.set_terminated(self._run_id, how, end_time=when)

    def _send_files(self, attempts: Attempts) -> None:
        def send(path: Path) -> None:
            attempts.attempt(
                path.name,
                lambda: self._client.log_artifact(self._run_id, str(path), "gradtrace"),
            )

        with tempfile.TemporaryDirectory(prefix="gradtrace-") as folder:
            if self._run.path is not None:
                if (self._run.path / "events.jsonl").is_file():
                    send(self._run.path / "events.jsonl")
                if _copy_info(self._run.path / "run.json", Path(folder) / "run.json"):
                    send(Path(folder) / "run.json")
            figure = Path(folder) / "loss_and_grad_norm.png"
            if self._curves.draw(figure):
                send(figure)

    # -- mlflow.json ---

    def _store(self) -> None:
        if self._run.path is None:
            return
        server = self._server if "@" not in urlsplit(self._server).netloc else None
        data = {"run_id": self._run_id, "own": self._own, "tracking_uri": server}
        path = self._run.path / _file(self.known_as)
        with contextlib.suppress(OSError):  # without the file our own run is found by its tag
            fresh = path.with_suffix(".tmp")
            fresh.write_text(json.dumps(data), encoding="utf-8")
            os.replace(fresh, path)

    def _check_server(self, stored: dict[str, Any] | None, current: str) -> None:
        # The file may come from somebody else: it must not choose who gets this user's token.
        before = None if stored is None else stored["server"]
        chosen = self._uri is not None or self._mlflow.is_tracking_uri_set()
        if before not in (None, current) and not chosen:
            raise ValueError(
                f"run {self._run.name!r} was sent to {before!r}, and no tracking server is set "
                "now: set MLFLOW_TRACKING_URI to that or to another one"
            )


# Per process by nature, as the environment is.
_limits = Environment("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")
_quiet = Environment("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT")


def _check_text(name: str, value: object, expected: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; expected a string, {expected}: or leave it out")
    if not value:
        raise ValueError(f"{name} is empty; expected {expected}: or leave it out")


def _copy_info(source: Path, to: Path) -> bool:
    """`run.json` as it will be: while the trace closes it says that the run goes on."""
    try:
        info = json.loads(source.read_bytes())
        if info["status"] == "running":
            ended = how_it_ended(source.parent)
            info["status"] = "finished" if ended == "closed" else ended
        to.write_text(json.dumps(info, indent=1), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:100] + ".json"


def _load(run: Path | None, name: str) -> dict[str, Any] | None:
    """What the run directory tells of the MLflow run; None if nothing that makes sense."""
    if run is None:
        return None
    try:
        data = json.loads((run / _file(name)).read_bytes())
        kept = {"run_id": data["run_id"], "own": data["own"], "server": data["tracking_uri"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    right = isinstance(kept["run_id"], str) and isinstance(kept["own"], bool)
    return kept if right and kept["run_id"].isalnum() else None
