"""A run's summary and lists of runs, for a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # a list of runs is printed without what sums them up
    from gradtrace.report.summary import Summary
    from gradtrace.runlog.status import RunSummary

LAYERS = 10


def print_summary(summary: Summary, console: Console, *, layers: int = LAYERS) -> None:
    """Prints a run's numbers, its `layers` layers with the largest gradients, and its notes."""
    console.print(
        f"[bold]{plain(summary.name)}[/bold]  {plain(summary.status)}, "
        f"{summary.steps:,} steps in {duration(summary.seconds)}"
    )
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(summary):
        facts.add_row(name, text)
    console.print(facts)
    if summary.layers:
        console.print(_layer_table(summary, layers))
    for text in summary.advice:
        console.print(f"[yellow]look[/yellow]  {plain(text)}")
    for text in summary.notes:
        console.print(f"[dim]note[/dim]  {plain(text)}")


def _facts(summary: Summary) -> Iterable[tuple[str, str]]:
    if summary.loss is not None:
        loss = summary.loss
        ends = f"{number(loss.first)} first, {number(loss.last)} last"
        yield "loss", f"{ends}, {number(loss.lowest)} lowest (step {loss.lowest_step:,})"
    if summary.percentiles:
        yield (
            "gradient norm",
            ", ".join(f"{number(v)} p{p}" for p, v in summary.percentiles.items()),
        )
    if summary.clipping is not None:
        clip = summary.clipping
        often = f"{clip.clipped:,} of {summary.steps:,} steps ({clip.fraction:.1%})"
        much = f"at {number(clip.threshold)}, median factor {number(clip.coefficient)}"
        yield "clipping", f"{often} {much}, at most {clip.longest_streak:,} in a row"
    yield "non-finite", f"{summary.nonfinite_steps:,} steps"
    if summary.skipped_steps:
        yield "skipped", f"{summary.skipped_steps:,} steps, by the AMP scaler"
    if summary.discarded:
        yield "thrown away", f"the gradients of {summary.discarded:,} backwards, by the loop"
    events = ", ".join(f"{count:,} {kind}" for kind, count in summary.events.items())
    if events:
        yield "events", plain(events)
    if not math.isnan(summary.overhead_ratio):
        yield "overhead", f"{summary.overhead:.2f} s ({summary.overhead_ratio:.2%} of the run)"


def _layer_table(summary: Summary, count: int) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("median norm", justify="right")
    table.add_column("share of norm²", justify="right")
    for layer in summary.layers[:count]:
        table.add_row(plain(layer.name), number(layer.norm), f"{layer.share:.1%}")
    if len(summary.layers) > count:
        table.add_row(f"[dim]and {len(summary.layers) - count:,} more[/dim]", "", "")
    return table


def print_runs(runs: Iterable[RunSummary], console: Console) -> None:
    """Prints a line per run."""
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("started")
    table.add_column("steps", justify="right")
    table.add_column("status")
    for run in runs:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
        table.add_row(plain(run.name), started, f"{run.steps:,}", plain(run.status))
    console.print(table)


def plain(text: str) -> str:
    """Text as it is, without what a terminal would take for a command."""
    return escape("".join(c if c.isprintable() or c == "\n" else "?" for c in text))


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would choose."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
