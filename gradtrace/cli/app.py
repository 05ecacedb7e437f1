"""The `gradtrace` command."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gradtrace.attribution.bad_samples import find_bad
from gradtrace.attribution.suspects import read_suspects
from gradtrace.detect.spikes.detector import latest_spikes
from gradtrace.exporter import Exporter, resolve_exporters
from gradtrace.exporters import OpenMetricsExporter, TensorBoardExporter
from gradtrace.monitoring import TARGET, write_monitoring
from gradtrace.pipeline.send import deliver
from gradtrace.records import RunInfo
from gradtrace.report.spikes import print_spike, print_spikes
from gradtrace.report.summary import summarize
from gradtrace.report.terminal import LAYERS, print_runs, print_summary
from gradtrace.runlog import Backlog, Run, list_runs, load_run

RUNS = Path("gradtrace-runs")
OPENMETRICS = "openmetrics"
TENSORBOARD = "tensorboard"

app = typer.Typer(
    help="Looks at training runs that gradtrace recorded.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help=f"A run directory, or a name below {RUNS}.")
]


@app.command()
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
    # Imports torch, which the other commands do without showing a result for seconds.
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
        raise _failed(str(error)) from error


@app.command()
def runs(
    directory: Annotated[Path, typer.Argument(help="A directory of runs.")] = RUNS,
) -> None:
    """List runs, oldest first."""
    if not directory.is_dir():
        raise typer.BadParameter(
            f"no directory {str(directory)!r} here: name the one the runs were written to",
            param_hint="DIRECTORY",
        )
    found = list_runs(directory)
    if found:
        print_runs(found, Console())
    else:
        typer.echo(f"no runs in {directory}")


@app.command()
def show(
    run: RunArgument,
    layers: Annotated[int, typer.Option(min=0, help="How many layers to list.")] = LAYERS,
) -> None:
    """Show what a run amounts to: loss, gradient norms, clipping, layers, overhead."""
    print_summary(summarize(_load(run)), Console(), layers=layers)


@app.command()
def spikes(
    run: RunArgument,
    step: Annotated[int | None, typer.Option(min=0, help="Show the spike at this step.")] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw that spike into this file (PNG).")
    ] = None,
) -> None:
    """List a run's spikes, or show one in full."""
    found = _load(run)
    some = latest_spikes(found.events)
    if step is None:
        if figure is not None:
            raise typer.BadParameter("give the spike's --step as well", param_hint="--figure")
        if some:
            print_spikes(some, Console())
        else:
            typer.echo(f"no spikes in {run}")
        return
    chosen = [spike for spike in some if spike.step <= step < spike.step + spike.duration]
    if not chosen:
        known = ", ".join(str(spike.step) for spike in some[:20]) or "none"
        raise typer.BadParameter(
            f"no spike at step {step}; there are: {known}", param_hint="--step"
        )
    for spike in chosen:
        print_spike(spike, Console())
    if figure is not None:
        from gradtrace.plots.spike import save_spike_figure

        measured = {(s.step, s.signal): s for s in read_suspects(found.path)}
        spike = chosen[0]
        try:
            save_spike_figure(found, spike, figure, measured.get((spike.step, spike.signal)))
        except (ImportError, OSError, ValueError) as error:
            raise _failed(str(error)) from error
        typer.echo(f"drawn: {figure}")


@app.command("bad-batches")
def bad_batches(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option(help="Where to write it.", show_default="standard output")
    ] = None,
) -> None:
    """Write the samples and batches behind a run's spikes as JSON, with the evidence.

    SkipSamples and SkipBatches take the file.
    """
    bad = find_bad(_load(run))
    if output is None:
        typer.echo(bad.to_json(), nl=False)
        return
    try:
        output.write_text(bad.to_json(), encoding="utf-8")
    except OSError as error:
        raise _failed(f"{str(output)!r} cannot be written: {error}") from error
    typer.echo(f"{len(bad.samples)} samples and {len(bad.batches)} batches written to {output}")


@app.command()
def send(
    run: RunArgument,
    to: Annotated[
        str, typer.Option(metavar="NAME", help="An installed exporter's name, or openmetrics.")
    ],
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]",
            help="The file for --to openmetrics, or the log directory for --to tensorboard.",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Send all of it once more.")] = False,
) -> None:
    """Deliver to an exporter what a finished or killed run still owes it.

    --to openmetrics FILE writes all of the run, whether delivered or not, as a file for
    `promtool tsdb create-blocks-from openmetrics`.
    """
    found = _load(run)
    if found.status == "running":
        raise typer.BadParameter(
            f"{run!r} is still running and delivers its records itself: wait for its end",
            param_hint="RUN",
        )
    exporter = _exporter(to, path)
    info = _info(found)
    if to == OPENMETRICS:
        # A file is written whole each time, and where the run directory cannot be written to.
        info = dataclasses.replace(info, path=None)
    try:
        sent = deliver(Backlog(found.path), info, exporter, name=to, again=again)
    except Exception as error:  # the exporter's own, of any kind
        raise _failed(f"{to} failed: {type(error).__name__}: {error}") from error
    typer.echo(f"{sent.steps:,} steps and {sent.events:,} events delivered to {to}")


monitoring_app = typer.Typer(
    help="Prometheus, Alertmanager and Grafana, ready to start.", no_args_is_help=True
)
app.add_typer(monitoring_app, name="monitoring")


@monitoring_app.command("init")
def monitoring_init(
    directory: Annotated[Path, typer.Argument(help="The folder to write; made if missing.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where a PrometheusExporter listens, as Prometheus reaches it; may be repeated.",
            show_default=TARGET,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write alert rules, a dashboard, and a docker-compose.yml that starts all of it."""
    try:
        written = write_monitoring(directory, targets=target or [TARGET], force=force)
    except (OSError, ValueError) as error:
        raise _failed(str(error)) from error
    for path in written:
        typer.echo(f"written: {path}")
    typer.echo(
        f"start it with: docker compose --project-directory {shlex.quote(str(directory))} up"
    )


def main() -> None:
    """Runs the command line; wrong usage exits with 2."""
    app()


def _load(name: str) -> Run:
    """The run of that path or name below `gradtrace-runs`."""
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


def _info(run: Run) -> RunInfo:
    """What `run.json` holds of the run's RunInfo."""
    names = {field.name for field in dataclasses.fields(RunInfo)}
    known: dict[str, Any] = {"name": run.path.name, "started": 0.0} | run.info | {"path": run.path}
    return RunInfo(**{name: value for name, value in known.items() if name in names})


def _exporter(name: str, path: Path | None) -> Exporter:
    """The exporter of this name: "mlflow-2" is the second of two in a trace."""
    kind = re.sub(r"-\d+$", "", name)
    try:
        if (kind == OPENMETRICS and path is None) or (
            path is not None and kind not in (OPENMETRICS, TENSORBOARD)
        ):
            got = "no path" if path is None else f"the path {path}"
            raise ValueError(
                f"got --to {name} and {got}; expected --to openmetrics FILE, --to tensorboard DIR, "
                "or another name alone"
            )
        if path is None:
            [exporter] = resolve_exporters([kind])
            return exporter
        made = OpenMetricsExporter if kind == OPENMETRICS else TensorBoardExporter
        return made(path)
    except (ImportError, TypeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--to") from error


def _failed(text: str) -> typer.Exit:
    typer.echo(f"gradtrace: {text}", err=True)
    return typer.Exit(1)
