"""The samples behind a spike: ranked by how far each is from the others, kept, and read back.

`refetch` measures them; nothing here needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradtrace.records import Array, SampleId, Spike

FILE = "suspects.jsonl"
STANDS_OUT = 2.0
"""A sample must be this many times the median of all to stand out,"""
DEVIATIONS = 5.0
"""and so many median absolute deviations above it, as logarithms;"""
ALONE = 4.0
"""or, whatever the spread of the others, this many times the next one."""


@dataclass(frozen=True, slots=True)
class SuspectSample:
    """One sample of a spike: its loss, its gradient norm, and how each compares.

    `loss_ratio` and `norm_ratio` are relative to the median of the spike's samples; `stands_out`
    says that it is far above them in one of the two.
    """

    sample_id: SampleId
    loss: float
    grad_norm: float
    loss_ratio: float
    norm_ratio: float
    stands_out: bool


@dataclass(frozen=True, slots=True)
class Suspects:
    """A spike's samples, the most suspicious first. `step` and `signal` are the spike's."""

    step: int
    signal: str
    samples: tuple[SuspectSample, ...]

    def __iter__(self) -> Iterator[SuspectSample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rank: int) -> SuspectSample:
        return self.samples[rank]


def rank(
    spike: Spike, ids: Sequence[SampleId], losses: Sequence[float], norms: Sequence[float]
) -> Suspects:
    """A spike's samples, measured, the most suspicious first; all three are [samples].

    The larger of two ratios to the median counts, that of the loss and that of the gradient norm:
    what can never be learned keeps the one, what contradicts the others keeps the other.
    """
    loss_ratios, norm_ratios = _ratios(np.asarray(losses)), _ratios(np.asarray(norms))
    order = np.argsort(-np.maximum(loss_ratios, norm_ratios), kind="stable")
    far = _far(loss_ratios) | _far(norm_ratios)
    samples = [
        SuspectSample(
            sample_id=ids[i],
            loss=float(losses[i]),
            grad_norm=float(norms[i]),
            loss_ratio=float(loss_ratios[i]),
            norm_ratio=float(norm_ratios[i]),
            stands_out=bool(far[i]),
        )
        for i in order.tolist()
    ]
    return Suspects(spike.step, spike.signal, tuple(samples))


def _ratios(values: Array) -> Array:
    """Each value over the median of all; NaN and Inf over it are Inf."""
    finite = values[np.isfinite(values)]
    middle = float(np.median(finite)) if len(finite) else math.nan
    with np.errstate(all="ignore"):
        ratios = values / middle
    return np.where(np.isfinite(values), ratios, math.inf)


def _far(ratios: Array) -> npt.NDArray[np.bool_]:
    """Which ratios are far above the others: by their median absolute deviation, or all alone.

    Where the others are spread widely, the largest is far as well if it is alone up there.
    """
    with np.errstate(all="ignore"):
        logs = np.log(ratios)
    spread = float(np.median(np.abs(logs[np.isfinite(logs)]))) if np.isfinite(logs).any() else 0.0
    far: npt.NDArray[np.bool_] = (ratios >= STANDS_OUT) & (logs >= DEVIATIONS * spread)
    if len(ratios) > 1:
        *_, next_one, largest = np.argsort(ratios, kind="stable")
        if ratios[largest] >= max(STANDS_OUT, ALONE * ratios[next_one]):
            far[largest] = True
    return far


def save_suspects(path: Path, found: Suspects) -> None:
    """Appends to the run directory's `suspects.jsonl`, one spike a line. Raises OSError."""
    line = {"step": found.step, "signal": found.signal}
    line["samples"] = [
        {key: None if value != value else value for key, value in asdict(sample).items()}
        for sample in found
    ]
    with (path / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_suspects(path: Path) -> list[Suspects]:
    """What `save_suspects` kept in a run directory; torn lines are left out."""
    found = []
    try:
        lines = (path / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            data = json.loads(line)
            samples = tuple([_sample(fields) for fields in data["samples"]])
            found.append(Suspects(data["step"], data["signal"], samples))
        except (ValueError, TypeError, KeyError):
            continue
    return found


def _sample(fields: Any) -> SuspectSample:
    whole: Any = {key: math.nan if value is None else value for key, value in fields.items()}
    return SuspectSample(**whole)
