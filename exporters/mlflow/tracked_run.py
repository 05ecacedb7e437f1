"""The run in MLflow: found or made, and what goes into it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradtrace.exporters._ending import has_failed
from gradtrace.exporters._keys import flat_params, run_mark
from gradtrace.exporters.mlflow.destination import Destination
from gradtrace.exporters.mlflow.environment import Environment
from gradtrace.exporters.mlflow.known_run import KnownRun
from gradtrace.records import RunInfo

logger = logging.getLogger("gradtrace")

PARAMS_A_CALL = 100
ID_TAG = "gradtrace.id"
_ENDS = {"killed": "KILLED"}

Row = tuple[str, float, int, int]
"""Key, value, time in milliseconds, and step."""

# Per process by nature, as the environment is.
_quiet = Environment("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT")


class TrackedRun:
    """One run of MLflow, that of `run`. Every method may raise what MLflow raises, and be repeated.

    `known_as` tells it from others of the same run: see `exporter.introduce`. One thread, but for
    `run_id`.
    """

    def __init__(self, mlflow: Any, entities: Any, to: Destination, run: RunInfo, known_as: str):
        self._mlflow = mlflow
        self._entities = entities
        self._to = to
        self._run = run
        self._known_as = known_as
        self._params = flat_params(run.config)
        self._client: Any = None
        self._ready = False

    @property
    def run_id(self) -> str | None:
        """Its id; None until the server has answered."""
        return self._to.run_id

    @property
    def own(self) -> bool:
        """Whether it was made by us, and so is ours to end."""
        return self._to.own

    def connect(self) -> None:
        """Finds or makes the run and gives it its parameters."""
        if self._ready:
            return
        if self._client is None:
            self._client = self._mlflow.MlflowClient(tracking_uri=self._to.server)
        run = self._joined() or self._found_or_made()
        self._to = dataclasses.replace(self._to, run_id=run.info.run_id)
        self.save()
        self._log_params(dict(run.data.params))
        self._ready = True

    def save(self) -> None:
        """Tells later processes which run this is. Raises nothing."""
        if self._to.run_id is not None:
            known = KnownRun(self._to.run_id, self._to.own, self._to.server)
            known.save(self._run.path, self._known_as)

    def log_metrics(self, rows: Sequence[Row]) -> None:
        """The server keeps rows that are the same once."""
        self._log(metrics=[self._entities.Metric(*row) for row in rows])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags beside those that every run of ours has."""
        made = [self._entities.RunTag(*item) for item in (self._tags() | dict(tags)).items()]
        self._log(tags=made)

    def log_file(self, path: Path) -> None:
        """A file, into the run's folder `gradtrace`."""
        self._client.log_artifact(self._to.run_id, str(path), "gradtrace")

    def end(self, status: str, when: int) -> None:
        """Ends it, as MLflow's own `with start_run()` does; `when` in milliseconds."""
        how = "FAILED" if has_failed(status) else _ENDS.get(status, "FINISHED")
        with _quiet.applied("true"):
            self._client.set_terminated(self._to.run_id, how, end_time=when)

    def _log(self, **what: Any) -> None:
        self._client.log_batch(self._to.run_id, **what, synchronous=True)

    def _joined(self) -> Any:
        """The run whose id is known, None if there is none or it came from another server."""
        to = self._to
        if to.run_id is None:
            return None
        try:
            run = self._client.get_run(to.run_id)
        except self._mlflow.exceptions.MlflowException as error:
            if to.given or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is not None and (to.given or run.info.lifecycle_stage != "deleted"):
            return run
        logger.warning(
            "exporter mlflow: run %s of MLflow is gone, or never was on this server; run %s goes "
            "into one of its own",
            to.run_id,
            self._run.name,
        )
        self._to = dataclasses.replace(to, run_id=None)
        return None

    def _found_or_made(self) -> Any:
        """A run of our own: one of an earlier try, whose answer was lost, or a new one."""
        run = self._run
        mark = run_mark(run, *([] if self._known_as == "mlflow" else [self._known_as]))[:32]
        experiment = self._experiment()
        self._to = dataclasses.replace(self._to, own=True)
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

    def _experiment(self) -> str:
        name = self._to.experiment
        if name is None:
            return self._to.experiment_id or "0"
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def _log_params(self, known: Mapping[str, str]) -> None:
        """The parameters that are not there yet. One that is refused does not hold up the run."""
        param = self._entities.Param
        refused = [key for key, text in self._params.items() if known.get(key, text) != text]
        fresh = [param(key, text) for key, text in self._params.items() if key not in known]
        for start in range(0, len(fresh), PARAMS_A_CALL):
            some = fresh[start : start + PARAMS_A_CALL]
            # One parameter that was set in between makes the server refuse all.
            for group in (some, *([one] for one in some)):
                try:
                    self._log(params=group)
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
