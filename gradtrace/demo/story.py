"""The demo from end to end: train, look at the spikes, name the documents, train without them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradtrace.attribution.bad_samples import BadList, find_bad
from gradtrace.attribution.skip import SkipSamples
from gradtrace.demo.charlm import CharLM
from gradtrace.demo.documents import LENGTH, Documents, collate
from gradtrace.demo.training import LEARNING_RATE, MAX_NORM, Size, token_loss, train
from gradtrace.detect.spikes.period import find_period
from gradtrace.exporter import Exporter
from gradtrace.records import Spike
from gradtrace.report.summary import summarize
from gradtrace.report.terminal import number, print_summary
from gradtrace.runlog.reader import load_run
from gradtrace.session.trace import Trace

STEPS = 500
"""Four epochs, about a minute on two cores."""
SECOND_SHARE = 0.4
"""The second run's steps, of the first's."""
CORRUPTED = 5
PROMPT = "The "
SHOWN = 22
DEFAULT = Size()


def run_demo(
    *,
    steps: int = STEPS,
    seconds: float | None = None,
    directory: str | os.PathLike[str] = "gradtrace-runs",
    exporters: Sequence[Exporter | str] = ("console",),
    size: Size = DEFAULT,
    console: Console | None = None,
) -> Path:
    """Trains a character-level GPT on documents of which a few are corrupted, and finds them.

    They come back at the same place of each epoch. Shows the run's summary, its spikes, the
    documents behind them with their text, the period, the clipping threshold the norms suggest, and
    a second, shorter run that skips those documents. Stops after `steps` optimizer steps, or
    `seconds` if that comes first. A smaller `size` takes less time. Returns the first run's
    directory.
    """
    console = console or Console()
    data = Documents(count=size.documents, corrupted=CORRUPTED)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).tolist()
    shape = CharLM(data.vocabulary, length=LENGTH, width=size.width, depth=size.depth)
    parameters = sum(p.numel() for p in shape.parameters())
    console.print(
        f"Training a GPT of {parameters:,} parameters on {len(data):,} documents from Python's "
        f"help() text, for {steps} steps. {CORRUPTED} of the documents are corrupted."
    )
    deadline = math.inf if seconds is None else monotonic() + seconds
    model, trace = train(
        data,
        order,
        steps=steps,
        size=size,
        deadline=deadline,
        directory=directory,
        exporters=exporters,
        config={"lr": LEARNING_RATE, "max_norm": MAX_NORM, "documents": len(data)},
    )
    if trace.path is None:
        raise RuntimeError(f"nothing could be written to {os.fspath(directory)!r}: choose another")
    written = data.decode(model.generate(data.encode(PROMPT), 200))
    console.rule("What the model writes now")
    console.print(written, markup=False, highlight=False)
    console.rule(f"gradtrace show {trace.path}")
    print_summary(summarize(load_run(trace.path)), console)
    if trace.spikes:
        bad = _explain(trace, data, size.batch, console)
        if bad.samples and monotonic() < deadline:
            _again(bad, data, order, steps, size, deadline, console)
    return trace.path


def _explain(trace: Trace, data: Documents, batch_size: int, console: Console) -> BadList:
    """Measures each spike's documents, and names those that stand out."""
    assert trace.path is not None
    spikes = _one_a_step(trace.spikes)
    console.rule(f"{len(spikes)} spikes")
    table = Table(box=None, padding=(0, 1))
    for column in ("step", "batch", "signal", "x level", "document", "x others", "its text"):
        table.add_column(column, justify="right" if column != "its text" else "left", no_wrap=True)
    for spike in spikes:
        first = trace.suspects(spike, data, token_loss, collate=collate)[0]
        ratio = max(first.loss_ratio, first.norm_ratio)
        text = data.decode(data[int(first.sample_id)])
        table.add_row(
            str(spike.step),
            ", ".join(f"{batch.epoch}.{batch.batch_index}" for batch in spike.blamed),
            spike.signal,
            number(spike.ratio),
            str(first.sample_id),
            number(ratio),
            escape(repr(text[:SHOWN])),
        )
    console.print(table)
    bad = find_bad(load_run(trace.path))
    for sample in bad.samples:
        truth = data.corrupted.get(int(sample.id), "an ordinary document")
        console.print(
            f"document {sample.id}: in {len(sample.steps)} spikes, {sample.visits} visits; it is "
            f"[bold]{truth}[/bold]"
        )
    epoch = len(data) // batch_size
    period = find_period([spike.step for spike in spikes], known=[epoch])
    if period is not None:
        console.print(
            f"period: spikes come back every [bold]{period.steps}[/bold] steps, "
            f"{period.hits} of {period.slots} times: once an epoch"
        )
    norms = trace.clipping.percentiles
    console.print(f"clipping: max_norm={norms[95]:.2g} would touch one step in twenty")
    return bad


def _one_a_step(spikes: Sequence[Spike]) -> list[Spike]:
    """Loss and norm often spike together: the stronger of the two."""
    best: dict[int, Spike] = {}
    for spike in spikes:
        if spike.step not in best or spike.score > best[spike.step].score:
            best[spike.step] = spike
    return list(best.values())


def _again(
    bad: BadList,
    data: Documents,
    order: list[int],
    steps: int,
    size: Size,
    deadline: float,
    console: Console,
) -> None:
    """The start of the same training once more, without the documents that were named."""
    again = max(1, int(SECOND_SHARE * steps))
    console.rule(f"Once more without them, {again} steps")
    skipping = SkipSamples(order, [sample.id for sample in bad.samples])
    _, trace = train(data, skipping, steps=again, size=size, deadline=deadline, directory=None)
    count = len(_one_a_step(trace.spikes))
    console.print(f"{count or 'no'} spike{'s' * (count != 1)} in {len(trace.steps)} steps")
