"""`gradtrace monitoring init`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gradtrace.cli.arguments import failed

monitoring = typer.Typer(
    help="Prometheus, Alertmanager and Grafana, ready to start.", no_args_is_help=True
)


@monitoring.command()
def init(
    directory: Annotated[Path, typer.Argument(help="The folder to write; made if missing.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where a PrometheusExporter listens, as Prometheus reaches it; may be repeated.",
            show_default="host.docker.internal:9464",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write alert rules, a dashboard, and a docker-compose.yml that starts all of it."""
    from gradtrace.monitoring import TARGET, write_monitoring

    try:
        written = write_monitoring(directory, targets=target or [TARGET], force=force)
    except (OSError, ValueError) as error:
        raise failed(str(error)) from error
    for path in written:
        typer.echo(f"written: {path}")
    typer.echo(
        f"start it with: docker compose --project-directory {shlex.quote(str(directory))} up"
    )


@monitoring.callback()
def _monitoring() -> None:
    """Keeps `init` a word of its own while it is the only one."""
