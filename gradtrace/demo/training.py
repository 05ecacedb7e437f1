"""The demo's training loop, as plain as a user's own."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import torch
from rich.console import Console
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gradtrace.demo.charlm import CharLM
from gradtrace.demo.text import TextWindows, help_text
from gradtrace.exporter import Exporter
from gradtrace.report import print_summary
from gradtrace.runlog import load_run
from gradtrace.session import gradtrace
from gradtrace.summary import summarize

STEPS = 700
"""About 90 seconds on two cores."""

LENGTH = 64
"""Characters that the model sees at once."""

PROMPT = "The "


def run_demo(
    *,
    steps: int = STEPS,
    seconds: float | None = None,
    directory: str | os.PathLike[str] = "gradtrace-runs",
    exporters: Sequence[Exporter | str] = ("console",),
    batch_size: int = 16,
    console: Console | None = None,
) -> Path:
    """Trains a character-level GPT under a trace, shows a sample of its text and the run's summary.

    Stops after `steps` optimizer steps, or `seconds` if that comes first. Returns the run
    directory.
    """
    console = console or Console()
    torch.manual_seed(0)
    data = TextWindows(help_text(), length=LENGTH)
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, drop_last=True)
    model = CharLM(len(data.characters), length=LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    config = {"steps": steps, "batch_size": batch_size, "lr": 3e-3, "max_norm": 1.0}
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"Training a GPT of {parameters:,} parameters on {len(data):,} windows of Python's "
        f"help() text, for {steps} steps."
    )

    deadline = math.inf if seconds is None else monotonic() + seconds
    done = 0
    with gradtrace(
        model, exporters=exporters, loader=loader, directory=directory, config=config
    ) as trace:
        while done < steps and monotonic() < deadline:
            for inputs, targets in loader:
                loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                done += 1
                if done >= steps or monotonic() >= deadline:
                    break

    if trace.path is None:
        raise RuntimeError(f"nothing could be written to {os.fspath(directory)!r}: choose another")
    written = data.decode(model.generate(data.encode(PROMPT), 200))
    console.rule("What the model writes now")
    console.print(written, markup=False, highlight=False)
    console.rule(f"gradtrace show {trace.path}")
    print_summary(summarize(load_run(trace.path)), console)
    return trace.path


def warm_cosine(step: int, steps: int, *, warm_up: int = 40) -> float:
    """The learning rate's factor: a linear rise, then a cosine fall to a tenth."""
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))
