"""Where in MLflow a run goes: the server, and the run that is joined or the experiment of ours."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from gradtrace.exporters.mlflow.known_run import KnownRun

logger = logging.getLogger("gradtrace")


@dataclass(frozen=True, slots=True)
class Destination:
    """A server, and a run of it; or, where there is none yet, the experiment that ours is made in.

    `given` tells that the user has named the run: it is never replaced. `own` tells that it is
    ours, and so ended by us. An experiment is known by its name or else by its id; MLflow's default
    one where neither is known.
    """

    server: str
    run_id: str | None = None
    given: bool = False
    own: bool = False
    experiment: str | None = None
    experiment_id: str | None = None


def choose_destination(
    mlflow: Any,
    name: str,
    *,
    tracking_uri: str | None,
    experiment: str | None,
    run_id: str | None,
    known: KnownRun | None,
) -> Destination:
    """From the user's choice, what an earlier process has made, and MLflow's present state.

    Asks no server; call it on the user's thread, whose active run it is. `name` is the run's,
    `known` its MLflow run so far. Raises ValueError when that is on a server that is not MLflow's
    present default, and nobody said which one is meant.
    """
    current = str(mlflow.get_tracking_uri())
    # The file may come from somebody else: it must not choose who gets this user's token.
    before = None if known is None else known.tracking_uri
    if before not in (None, current) and tracking_uri is None and not mlflow.is_tracking_uri_set():
        raise ValueError(
            f"run {name!r} was sent to {before!r}, and no tracking server is set now: set "
            "MLFLOW_TRACKING_URI to that or to another one"
        )
    server = tracking_uri or current
    here = server == current
    if run_id is not None:
        return Destination(server, run_id, given=True)
    # set_experiment() leaves its choice in the first, whatever the second says.
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") if here else None
    if known is not None:
        run_id, own = known.run_id, known.own
    else:
        active = mlflow.active_run() if here else None
        run_id, own = (None if active is None else str(active.info.run_id)), False
        if active is not None and experiment is not None:
            logger.warning(
                "exporter mlflow: run %s goes into MLflow's active run, wherever that is; "
                "experiment=%r is for a run of its own",
                name,
                experiment,
            )
    if experiment is None and experiment_id is None and here:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    return Destination(server, run_id, own=own, experiment=experiment, experiment_id=experiment_id)
