"""The commands put together."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from gradtrace.cli.bad_batches import bad_batches
from gradtrace.cli.demo import demo
from gradtrace.cli.monitoring import monitoring
from gradtrace.cli.runs import runs
from gradtrace.cli.send import send
from gradtrace.cli.show import show
from gradtrace.cli.spikes import spikes

app = typer.Typer(
    help="Looks at training runs that gradtrace recorded.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(runs)
app.command()(show)
app.command()(spikes)
app.command("bad-batches")(bad_batches)
app.command()(send)
app.add_typer(monitoring, name="monitoring")


def _print_version(asked: bool) -> None:
    if asked:
        parts = [f"{package} {_version(package)}" for package in ("gradtrace", "torch")]
        typer.echo(", ".join([*parts, f"Python {platform.python_version()}"]))
        raise typer.Exit


def _version(package: str) -> str:
    """Asked of the installed package's metadata: torch itself takes seconds to load."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@app.callback()
def _gradtrace(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show versions and exit."
        ),
    ] = False,
) -> None:
    """Only for the option that all commands share."""


def main() -> None:
    """Runs the command line; wrong usage exits with 2."""
    app()
