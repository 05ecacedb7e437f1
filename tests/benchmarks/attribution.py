"""Poisoned documents, found: real training over several seeds.

    python tests/benchmarks/attribution.py [SEED ...]

The demo's model in a smaller size, 5 corrupted documents among 2,000, shuffled, 2 workers, 2
micro-batches a step, 4 epochs. Prints per seed in which epoch each document was first named, how
often the first of `suspects` was the corrupted one, and the clean documents in the bad list.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader

from gradtrace import Sampling, gradtrace, load_run
from gradtrace.attribution.bad_samples import find_bad
from gradtrace.demo.charlm import CharLM
from gradtrace.demo.documents import LENGTH, Documents, collate
from gradtrace.demo.training import token_loss

EPOCHS = 4


@dataclass
class Outcome:
    """What one seed gave. `named` maps documents to the epoch in which they were first named."""

    seed: int
    documents: set[int]
    named: dict[int, int] = field(default_factory=dict)
    spikes: int = 0
    right: int = 0
    false_alarms: int = 0
    listed: set[int] = field(default_factory=set)


def run(seed: int, *, epochs: int = EPOCHS) -> Outcome:
    """Trains, and measures the samples of each spike at the end of its epoch."""
    torch.manual_seed(seed)
    data = Documents(seed=seed)
    model = CharLM(data.vocabulary, length=LENGTH, width=64, depth=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    loader = DataLoader(
        data,
        batch_size=8,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        collate_fn=collate,
        drop_last=True,
    )
    outcome = Outcome(seed, set(data.corrupted))
    looked: set[int] = set()
    sampling = Sampling(activations=0, updates=0)
    with gradtrace(model, loader=loader, directory=tempfile.mkdtemp(), sampling=sampling) as trace:
        for epoch in range(epochs):
            for i, (inputs, targets) in enumerate(loader):
                (token_loss(model(inputs), targets) / 2).backward()
                if i % 2:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
            trace.flush()
            for spike in trace.spikes:
                if spike.step in looked:
                    continue
                looked.add(spike.step)
                bad = {i for b in spike.batches for i in b.sample_ids or ()} & outcome.documents
                first = trace.suspects(spike, data, token_loss, collate=collate)[0].sample_id
                if not bad:
                    outcome.false_alarms += 1
                    continue
                outcome.spikes += 1
                outcome.right += first in bad
                if first in bad:
                    outcome.named.setdefault(int(first), epoch)
    assert trace.path is not None
    outcome.listed = {int(sample.id) for sample in find_bad(load_run(trace.path)).samples}
    return outcome


def main() -> None:
    """Runs the seeds given, or ten."""
    torch.set_num_threads(1)
    outcomes = []
    for seed in map(int, sys.argv[1:] or range(10)):
        one = run(seed)
        outcomes.append(one)
        print(
            f"seed {seed}: named in epoch {sorted(one.named.values())} of {len(one.documents)}, "
            f"first of suspects right {one.right} of {one.spikes}, "
            f"false alarms {one.false_alarms}, clean documents listed "
            f"{len(one.listed - one.documents)}",
            flush=True,
        )
    named = [epoch for one in outcomes for epoch in one.named.values()]
    print(
        f"named by the second epoch {sum(e <= 1 for e in named)}, by the third "
        f"{sum(e <= 2 for e in named)}, of {sum(len(one.documents) for one in outcomes)}; first of "
        f"suspects right {sum(one.right for one in outcomes)} of "
        f"{sum(one.spikes for one in outcomes)}; clean documents listed "
        f"{sum(len(one.listed - one.documents) for one in outcomes)}"
    )


if __name__ == "__main__":
    main()
