"""`gradtrace send`."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradtrace.cli.arguments import RunArgument, failed, load

if TYPE_CHECKING:
    from gradtrace.records import RunInfo
    from gradtrace.runlog.reader import Run


def send(
    run: RunArgument,
    to: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="An installed exporter's name; mlflow-2 is a trace's second one."
        ),
    ],
    argument: Annotated[
        str | None,
        typer.Argument(
            metavar="ARGUMENT",
            help="The exporter's first setting, if it takes one: a file, a folder or an address.",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Send all of it once more.")] = False,
) -> None:
    """Deliver to an exporter what a finished or killed run still owes it.

    One that makes a single thing of the whole run gets all of it each time: --to openmetrics FILE
    writes what `promtool tsdb create-blocks-from openmetrics` reads.
    """
    from gradtrace.exporter import make_exporter
    from gradtrace.pipeline.send import deliver
    from gradtrace.runlog.backlog import Backlog

    found = load(run)
    if found.status == "running":
        raise typer.BadParameter(
            f"{run!r} is still running and delivers its records itself: wait for its end",
            param_hint="RUN",
        )
    try:
        exporter = make_exporter(re.sub(r"-\d+$", "", to), argument)
    except (ImportError, TypeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--to") from error
    try:
        sent = deliver(Backlog(found.path), _info(found), exporter, name=to, again=again)
    except Exception as error:  # the exporter's own, of any kind
        raise failed(f"{to} failed: {type(error).__name__}: {error}") from error
    typer.echo(f"{sent.steps:,} steps and {sent.events:,} events delivered to {to}")


def _info(run: Run) -> RunInfo:
    """What `run.json` holds of the run's RunInfo."""
    from gradtrace.records import RunInfo

    names = {field.name for field in dataclasses.fields(RunInfo)}
    known: dict[str, Any] = {"name": run.path.name, "started": 0.0} | run.info | {"path": run.path}
    return RunInfo(**{name: value for name, value in known.items() if name in names})
