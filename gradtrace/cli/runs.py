"""`gradtrace runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradtrace.cli.arguments import RUNS


def runs(
    directory: Annotated[Path, typer.Argument(help="A directory of runs.")] = RUNS,
) -> None:
    """List runs, oldest first."""
    if not directory.is_dir():
        raise typer.BadParameter(
            f"no directory {str(directory)!r} here: name the one the runs were written to",
            param_hint="DIRECTORY",
        )
    from gradtrace.runlog.status import list_runs

    found = list_runs(directory)
    if not found:
        typer.echo(f"no runs in {directory}")
        return
    from rich.console import Console

    from gradtrace.report.terminal import print_runs

    print_runs(found, Console())
