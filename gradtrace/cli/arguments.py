"""What several commands take, and how they end when something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gradtrace.runlog.reader import Run

RUNS = Path("gradtrace-runs")

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help=f"A run directory, or a name below {RUNS}.")
]


def load(name: str) -> Run:
    """The run of that path or name below `gradtrace-runs`. Raises BadParameter for none."""
    from gradtrace.runlog.reader import load_run

    for path in (Path(name), RUNS / name):
        if path.is_dir():
            try:
                return load_run(path)
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint="RUN") from error
    raise typer.BadParameter(
        f"no run {name!r}, neither as a path nor in {RUNS}: `gradtrace runs` lists them",
        param_hint="RUN",
    )


def failed(text: str) -> typer.Exit:
    """Says what went wrong; to be raised, so that the command exits with 1."""
    typer.echo(f"gradtrace: {text}", err=True)
    return typer.Exit(1)
