"""The demo's training loop, as plain as a user's own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gradtrace.demo.charlm import CharLM
from gradtrace.demo.documents import (
    IGNORED,
    LENGTH,
    LONGEST,
    SHORTEST,
    Documents,
    collate,
)
from gradtrace.exporter import Exporter
from gradtrace.session.trace import Trace, gradtrace

LEARNING_RATE = 3e-3
MAX_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large the demo's corpus, its model and its batches are."""

    documents: int = 2000
    width: int = 128
    depth: int = 5
    batch: int = 16


def train(
    data: Documents,
    sampler: Iterable[int],
    *,
    steps: int,
    size: Size,
    deadline: float = math.inf,
    directory: str | os.PathLike[str] | None,
    exporters: Sequence[Exporter | str] = (),
    config: dict[str, Any] | None = None,
) -> tuple[CharLM, Trace]:
    """Trains a character-level GPT under a trace, for `steps` or until `deadline` (monotonic)."""
    torch.manual_seed(0)
    model = CharLM(data.vocabulary, length=LENGTH, width=size.width, depth=size.depth)
    loader = DataLoader(
        data, batch_size=size.batch, sampler=sampler, drop_last=True, collate_fn=collate
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    done = 0
    with gradtrace(
        model,
        exporters=exporters,
        loader=loader,
        directory=directory,
        config={"steps": steps, "batch_size": size.batch, **(config or {})},
    ) as trace:
        while done < steps and monotonic() < deadline:
            for inputs, targets in loader:
                loss = token_loss(model(inputs), targets)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                done += 1
                if done >= steps or monotonic() >= deadline:
                    break
    return model, trace


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy of logits [batch, length, vocabulary] to targets, IGNORED left out.

    Summed over tokens and divided by those of so many ordinary documents, so that every token
    counts alike whatever it shares a batch with.
    """
    total = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (len(targets) * (SHORTEST + LONGEST) / 2)


def warm_cosine(step: int, steps: int, *, warm_up: int = 40) -> float:
    """The learning rate's factor: a linear rise, then a cosine fall to a tenth."""
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))
