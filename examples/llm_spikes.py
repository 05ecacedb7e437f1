"""Find the documents behind a language model's spikes, then train without them.

Five of 2,000 documents are corrupted: binary noise, one endless token, shuffled bytes. Nothing
tells the training loop. The trace sees the spikes, knows the samples of every step, measures them
one by one, and writes the list that the second run skips.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler

from gradtrace import BadList, SkipSamples, SpikeFiles, Trace, find_bad, gradtrace
from gradtrace.demo.charlm import CharLM
from gradtrace.demo.documents import LENGTH, Documents, collate
from gradtrace.demo.training import token_loss


def train(data: Documents, sampler: object, epochs: int, directory: str) -> tuple[CharLM, Trace]:
    """An ordinary loop with two micro-batches a step."""
    torch.manual_seed(0)
    model = CharLM(data.vocabulary, length=LENGTH, width=64, depth=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    loader = DataLoader(
        data,
        batch_size=8,
        sampler=sampler,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=2,
        persistent_workers=True,
        drop_last=True,
    )
    with gradtrace(
        model, loader=loader, directory=directory, on_spike=SpikeFiles(Path(directory) / "spikes")
    ) as trace:
        for _ in range(epochs):
            for i, (inputs, targets) in enumerate(loader):
                loss = token_loss(model(inputs), targets)
                (loss / 2).backward()
                if i % 2:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
    return model, trace


def main(epochs: int = 4, directory: str = "gradtrace-runs") -> tuple[Documents, BadList, Trace]:
    """Trains, names the bad documents, trains again; returns the data, the list, the second trace.

    About a minute and a half on two cores.
    """
    data = Documents(seed=0)
    _, trace = train(data, RandomSampler(data), epochs, directory)
    for spike in trace.spikes:
        worst = trace.suspects(spike, data, token_loss, collate=collate)[0]
        print(f"step {spike.step}: {spike.message}")
        print(
            f"  worst sample: {worst.sample_id}, {data.decode(data[int(worst.sample_id)])[:40]!r}"
        )

    assert trace.path is not None
    bad = find_bad(trace.path)  # what `gradtrace bad-batches RUN` writes
    for sample in bad.samples:
        what = data.corrupted.get(int(sample.id), "an ordinary document")
        print(f"document {sample.id} is {what}: {len(sample.steps)} spikes, {sample.why}")

    skipping = SkipSamples(RandomSampler(data), [sample.id for sample in bad.samples])
    _, second = train(data, skipping, max(1, epochs // 2), directory)
    print(f"without them: {len(second.spikes)} spikes in {len(second.steps)} steps")
    return data, bad, second


if __name__ == "__main__":
    main()
