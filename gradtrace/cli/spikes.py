"""`gradtrace spikes`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradtrace.cli.arguments import RunArgument, failed, load

if TYPE_CHECKING:
    from gradtrace.records import Spike
    from gradtrace.runlog.reader import Run


def spikes(
    run: RunArgument,
    step: Annotated[int | None, typer.Option(min=0, help="Show the spike at this step.")] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw that spike into this file (PNG).")
    ] = None,
) -> None:
    """List a run's spikes, or show one in full."""
    if step is None and figure is not None:
        raise typer.BadParameter("give the spike's --step as well", param_hint="--figure")
    from rich.console import Console

    from gradtrace.detect.spikes.detector import latest_spikes
    from gradtrace.report.spikes import print_spike, print_spikes

    found = load(run)
    some = latest_spikes(found.events)
    if step is None:
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
        _draw(found, chosen[0], figure)


def _draw(run: Run, spike: Spike, figure: Path) -> None:
    from gradtrace.attribution.suspects import read_suspects
    from gradtrace.plots.spike import save_spike_figure

    measured = {(s.step, s.signal): s for s in read_suspects(run.path)}
    try:
        save_spike_figure(run, spike, figure, measured.get((spike.step, spike.signal)))
    except (ImportError, OSError, ValueError) as error:
        raise failed(str(error)) from error
    typer.echo(f"drawn: {figure}")
