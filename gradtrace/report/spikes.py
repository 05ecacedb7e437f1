"""Spikes in a terminal: all of a run's in a table, or one of them in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import shorten

from rich.console import Console
from rich.table import Table

from gradtrace.records import BatchRef, Spike
from gradtrace.report.terminal import number, plain

IDS = 12
LAYERS = 8
BESIDE = 62
"""Characters of a line for everything but the likely cause."""


def print_spikes(spikes: Sequence[Spike], console: Console) -> None:
    """One line a spike, with the batch it is blamed on; `print_spike` tells in full what is cut."""
    room = max(20, console.width - BESIDE)
    table = Table(box=None, padding=(0, 1))
    for column in ("step", "signal", "value", "x baseline", "steps", "epoch", "batch", "likely"):
        table.add_column(column, justify="left" if column in ("signal", "likely") else "right")
    for spike in spikes:
        epoch, batch = _first_blamed(spike)
        table.add_row(
            f"{spike.step:,}",
            spike.signal,
            number(spike.value),
            number(spike.ratio),
            str(spike.duration),
            epoch,
            batch,
            plain(shorten(spike.likely.message if spike.likely else "", room, placeholder=" ...")),
        )
    console.print(table)


def print_spike(spike: Spike, console: Console) -> None:
    """Everything known of one spike."""
    console.print(f"[bold]{plain(spike.signal)} spike at step {spike.step:,}[/bold]")
    grid = Table.grid(padding=(0, 2))
    for name, text in _facts(spike):
        grid.add_row(name, plain(text))
    console.print(grid)
    for cause in spike.causes:
        sure = "  ?" if cause.confidence is None else f"{cause.confidence:4.0%}"
        console.print(f"  {sure}  {plain(cause.kind)}: {plain(cause.message)}", highlight=False)


def _facts(spike: Spike) -> Iterator[tuple[str, str]]:
    level = f"{number(spike.ratio)} times its baseline {number(spike.baseline)}"
    lasted = f"{spike.duration} step{'s' * (spike.duration > 1)}"
    yield "value", f"{number(spike.value)}, {level} (score {spike.score:.2f}), {lasted}"
    if spike.batches:
        yield "made of", f"{len(spike.batches)} batch{'es' * (len(spike.batches) > 1)}"
    if spike.blamed:
        before = f", of step {spike.blamed_step:,}" if spike.blamed_step != spike.step else ""
        yield "blamed", "; ".join(map(_batch, spike.blamed)) + before
    elif spike.batches:
        yield "blamed", "no batch"
    yield "suspect", f"{spike.suspect}: {spike.suspicion}" if spike.suspicion else spike.suspect
    if spike.micro_batch is not None:
        yield "micro-batch", f"number {spike.micro_batch} has the largest loss"
    if spike.lr:
        yield "learning rate", ", ".join(f"{lr:.4g}" for lr in spike.lr)
    if spike.clip is not None:
        norms = f"{number(spike.clip.norm_before)} to {number(spike.clip.norm_after)}"
        yield "clipping", f"{norms} (factor {number(spike.clip.coefficient)})"
    if spike.layers:
        rises = ", ".join(f"{rise.name} x{rise.ratio:.3g}" for rise in spike.layers[:LAYERS])
        more = len(spike.layers) - LAYERS
        yield "layers", rises + (f" and {more} more" if more > 0 else "")
        yield "first", f"{spike.first_forward} forward, {spike.first_backward} backward"
    if spike.nonfinite:
        yield "non-finite", f"{spike.nonfinite} gradient values"
    if spike.seconds is not None:
        yield "step time", f"{spike.seconds:.3g} s"


def _first_blamed(spike: Spike) -> tuple[str, str]:
    """Epoch and index of the first batch to blame, and how many more there are."""
    if not spike.blamed:
        return "-", "-"
    first, *others = spike.blamed
    return str(first.epoch), f"{first.batch_index}" + (f" +{len(others)}" if others else "")


def _batch(batch: BatchRef) -> str:
    text = f"epoch {batch.epoch} batch {batch.batch_index}"
    ids = batch.sample_ids
    if not ids:
        return text
    shown = ", ".join(map(str, ids[:IDS]))
    return f"{text} (samples {shown}{', ...' if len(ids) > IDS else ''})"
