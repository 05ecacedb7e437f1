"""Records the healthy series of the spike benchmark: losses and gradient norms of real small runs.

    python tests/benchmarks/record_series.py
    python tests/benchmarks/record_series.py --more

The first trains every run of `RUNS` under a trace, without clipping, and writes `series.npz`; the
second trains those that the rule is tuned on with six other seeds, and writes `tuning.npz`. It
takes minutes; the files are kept with the tests so that scores can be compared over time.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Sampling, gradtrace
from gradtrace.demo.charlm import CharLM
from gradtrace.demo.text import TextWindows, help_text

FILE = Path(__file__).with_name("series.npz")
MORE = Path(__file__).with_name("tuning.npz")
MORE_SEEDS = range(1, 7)
LENGTH = 32

Schedule = Literal["constant", "warmup", "cosine", "step", "restarts"]


@dataclass(frozen=True)
class Run:
    """One training run."""

    model: Literal["gpt", "lstm", "cnn"]
    batch: int
    lr: float
    schedule: Schedule
    optimizer: Literal["adamw", "sgd"]
    steps: int = 800

    @property
    def name(self) -> str:
        """Unique among RUNS."""
        return f"{self.model}-b{self.batch}-{self.optimizer}-{self.lr:g}-{self.schedule}"


RUNS = (
    Run("gpt", 2, 1e-3, "warmup", "adamw", 1200),
    Run("gpt", 4, 3e-3, "constant", "adamw", 1000),
    Run("gpt", 8, 1e-3, "cosine", "adamw"),
    Run("gpt", 8, 3e-3, "restarts", "adamw"),
    Run("gpt", 16, 3e-4, "warmup", "adamw"),
    Run("gpt", 16, 0.1, "step", "sgd"),
    Run("gpt", 64, 2e-3, "cosine", "adamw", 600),
    Run("lstm", 2, 2e-3, "constant", "adamw", 1200),
    Run("lstm", 4, 0.5, "step", "sgd"),
    Run("lstm", 8, 5e-3, "warmup", "adamw"),
    Run("lstm", 16, 1e-2, "restarts", "adamw"),
    Run("lstm", 64, 2e-3, "cosine", "adamw", 600),
    Run("cnn", 2, 1e-3, "constant", "adamw", 1200),
    Run("cnn", 4, 0.02, "cosine", "sgd", 1000),
    Run("cnn", 8, 3e-3, "step", "adamw"),
    Run("cnn", 16, 0.05, "restarts", "sgd"),
    Run("cnn", 32, 1e-3, "warmup", "adamw"),
    Run("cnn", 64, 0.1, "constant", "sgd"),
)
"""Every second one is for tuning, the others for reporting."""


class CharLSTM(nn.Module):
    """Predicts the next character."""

    def __init__(self, vocabulary: int, width: int = 96) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary]."""
        logits: Tensor = self.head(self.lstm(self.token(tokens))[0])
        return logits


def build(run: Run) -> tuple[nn.Module, Iterator[tuple[Tensor, Tensor]], Callable[..., Tensor]]:
    """The model, its endless batches and its loss."""
    if run.model == "cnn":
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        data: TensorDataset | TextWindows = TensorDataset(images, torch.tensor(digits))
        model: nn.Module = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(512, 10),
        )

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(model(x), y)
    else:
        data = TextWindows(help_text(), length=LENGTH)
        size = len(data.characters)
        model = (
            CharLM(size, length=LENGTH, width=48, depth=2) if run.model == "gpt" else CharLSTM(size)
        )

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    loader = DataLoader(data, batch_size=run.batch, shuffle=True, drop_last=True)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    return model, batches(), loss


def factor(run: Run) -> Callable[[int], float]:
    """The learning rate's factor by step."""

    def at(step: int) -> float:
        if run.schedule == "warmup":
            return min(1.0, (step + 1) / 100)
        if run.schedule == "cosine":
            return 0.5 + 0.5 * math.cos(math.pi * step / run.steps)
        if run.schedule == "restarts":
            return 0.1 + 0.45 * (1 + math.cos(math.pi * (step % 200) / 200))
        if run.schedule == "step":
            return float(0.3 ** (step // 300))
        return 1.0

    return at


def record(run: Run, seed: int) -> tuple[list[float], list[float]]:
    """Trains one run; its losses and gradient norms."""
    torch.manual_seed(seed)
    model, batches, loss = build(run)
    optimizer: torch.optim.Optimizer
    if run.optimizer == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=run.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor(run))
    losses: list[float] = []
    norms: list[float] = []
    sampling = Sampling(activations=0, updates=0)
    with gradtrace(model, directory=None, sampling=sampling) as trace:
        for step in range(run.steps):
            value = loss(*next(batches))
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 200 == 199:
                trace.flush()
                # `steps` keeps the newest thousand, fewer when tables are large.
                for kept in trace.steps[-200:]:
                    losses.append(kept.loss if kept.loss is not None else math.nan)
                    norms.append(kept.grad_norm if kept.grad_norm is not None else math.nan)
    return losses, norms


def record_all(runs: Iterable[tuple[str, Run, int]], file: Path) -> None:
    """Trains runs, each with its name in the file and its seed."""
    series: dict[str, np.ndarray] = {}
    for name, run, seed in runs:
        losses, norms = record(run, seed)
        if len(losses) != run.steps or not np.isfinite([losses, norms]).all():
            sys.exit(f"{name}: {len(losses)} steps of {run.steps}, or a value that is no number")
        series[f"{name}/loss"] = np.asarray(losses, dtype=np.float32)
        series[f"{name}/grad_norm"] = np.asarray(norms, dtype=np.float32)
        print(f"{name}: loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    np.savez_compressed(file, allow_pickle=False, **series)


def main() -> None:
    """Records the runs asked for."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--more"]:
        tuning = list(enumerate(RUNS[::2]))
        more = [(f"{r.name}-s{s}", r, 1000 * s + k) for s in MORE_SEEDS for k, r in tuning]
        record_all(more, MORE)
    else:
        record_all([(run.name, run, seed) for seed, run in enumerate(RUNS)], FILE)


if __name__ == "__main__":
    main()
