"""`gradtrace show`."""

from __future__ import annotations

from typing import Annotated

import typer

from gradtrace.cli.arguments import RunArgument, load


def show(
    run: RunArgument,
    layers: Annotated[int, typer.Option(min=0, help="How many layers to list.")] = 10,
) -> None:
    """Show what a run amounts to: loss, gradient norms, clipping, layers, overhead."""
    from rich.console import Console

    from gradtrace.report.summary import summarize
    from gradtrace.report.terminal import print_summary

    print_summary(summarize(load(run)), Console(), layers=layers)
