"""`gradtrace demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradtrace.cli.arguments import RUNS, failed


def demo(
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps.", show_default="about 90 s")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="Stop after this many seconds.")
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where the run directory goes.")] = RUNS,
    exporter: Annotated[
        list[str] | None,
        typer.Option(help="Names of exporters; may be repeated.", show_default="console"),
    ] = None,
) -> None:
    """Train a small language model under a trace, on the text of Python's help()."""
    from gradtrace.demo import run_demo
    from gradtrace.demo.story import STEPS

    try:
        run_demo(
            steps=STEPS if steps is None else steps,
            seconds=seconds,
            directory=directory,
            exporters=["console"] if exporter is None else exporter,
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise failed(str(error)) from error
