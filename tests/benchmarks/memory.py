"""What spike detection holds after a million steps: `python tests/benchmarks/memory.py [STEPS]`."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import numpy as np
from build import healthy
from spike_records import ORDER

from gradtrace import SpikeRule
from gradtrace.detect.spikes.detector import SpikeDetector


def _ignore(step: int) -> None:
    """No lambda, so that the detector can be pickled."""


def sizes(steps: int, every: int) -> Iterator[tuple[int, int, int]]:
    """Steps fed, spikes found, and bytes of the detector's whole state, each `every` steps.

    Heavy-tailed norms; a spike each 500 steps, a lasting one each 10,000, a NaN each 777; ids that
    never come back, so whatever is kept by sample would grow.
    """
    rng = np.random.default_rng(0)
    found = SpikeDetector(SpikeRule(), ORDER, on_alarm=_ignore)
    spikes = 0
    for step in range(steps):
        norm = float(np.exp(rng.normal(0, 0.2)))
        if step % 500 == 499 or step % 10_000 > 9_990:
            norm *= 50
        loss = float("nan") if step % 777 == 776 else 2.0
        events = found.update(healthy(step, norm=norm, loss=loss, lr=1e-3 + 1e-9 * step))
        spikes += len(events)
        if step % every == every - 1:
            yield step + 1, spikes, len(pickle.dumps(found))


if __name__ == "__main__":
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for steps, spikes, size in sizes(total, max(1, total // 10)):
        print(f"{steps:,} steps, {spikes:,} events, {size:,} bytes", flush=True)
