"""The samples behind a spike: fetched again, measured one by one, ranked, and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from gradtrace.analysis.pytree import map_tensors
from gradtrace.attribution.per_sample import SampleScore, attribute, check_measurable, fetch
from gradtrace.records import SampleId, Spike

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


def suspects(
    model: nn.Module,
    spike: Spike,
    dataset: Any,
    loss_fn: Callable[..., Tensor],
    *,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Suspects:
    """Ranks the samples of a spike by how far each is from the others, for the present model.

    The larger of two ratios to the median counts, that of the loss and that of the gradient norm:
    what can never be learned keeps the one, what contradicts the others keeps the other.

    The samples are those of the spike's batches, and of the previous ones where the spike is put
    down to the update before. `dataset[id]` (or `dataset(id)`) must give a sample; `collate` makes
    a batch of a list of them (torch's own by default; where it refuses, samples are measured alone,
    and what cannot be made a batch of at all raises). `loss_fn` as for `gradtrace.attribute`.

    Costs two to four training steps. Raises ValueError when the spike knows no sample ids, KeyError
    when the dataset lacks one, TypeError or ValueError for arguments of the wrong kind.
    """
    check_measurable(model, loss_fn)
    if not isinstance(spike, Spike):
        raise TypeError(
            f"spike is a {type(spike).__name__}; expected a Spike, such as one of trace.spikes"
        )
    batches = spike.batches + (spike.previous_batches if spike.suspect == "update" else ())
    ids = list(dict.fromkeys(sample for batch in batches for sample in batch.sample_ids or ()))
    if not ids:
        raise ValueError(
            f"the spike at step {spike.step} knows no sample ids: give gradtrace(...) the loader, "
            "or sample_ids="
        )
    samples = fetch(dataset, ids)
    collate = default_collate if collate is None else collate
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    scores: list[SampleScore] = []
    for some, names in _groups(samples, ids, collate):
        found = attribute(model, loss_fn, _moved(some, device), sample_ids=names)
        scores += found.samples
    losses = np.asarray([score.loss for score in scores])
    norms = np.asarray([score.grad_norm for score in scores])
    loss_ratios, norm_ratios = _ratios(losses), _ratios(norms)
    key = np.maximum(loss_ratios, norm_ratios)
    order = np.argsort(-key, kind="stable")
    far = _far(loss_ratios) | _far(norm_ratios)
    return Suspects(
        spike.step,
        spike.signal,
        tuple(
            [
                SuspectSample(
                    scores[i].sample_id,
                    scores[i].loss,
                    scores[i].grad_norm,
                    float(loss_ratios[i]),
                    float(norm_ratios[i]),
                    bool(far[i]),
                )
                for i in order
            ]
        ),
    )


def _groups(
    samples: list[Any], ids: list[SampleId], collate: Callable[[list[Any]], Any]
) -> Iterator[tuple[Any, Sequence[SampleId]]]:
    """All samples as one batch; each as its own where they do not fit together."""
    try:
        batch = collate(samples)
    except (RuntimeError, TypeError, ValueError):
        for sample, name in zip(samples, ids, strict=True):
            yield collate([sample]), (name,)
    else:
        yield batch, ids


def _moved(batch: Any, device: torch.device) -> Any:
    return map_tensors(lambda tensor: tensor.to(device), batch)


def _ratios(values: np.ndarray) -> np.ndarray:
    """Each value over the median of all; NaN and Inf over it are Inf."""
    finite = values[np.isfinite(values)]
    middle = float(np.median(finite)) if len(finite) else math.nan
    with np.errstate(all="ignore"):
        ratios = values / middle
    return np.where(np.isfinite(values), ratios, math.inf)


def _far(ratios: np.ndarray) -> np.ndarray:
    """Which ratios are far above the others: by their median absolute deviation, or all alone.

    Where the others are spread widely, the largest is far as well if it is alone up there.
    """
    with np.errstate(all="ignore"):
        logs = np.log(ratios)
    spread = float(np.median(np.abs(logs[np.isfinite(logs)]))) if np.isfinite(logs).any() else 0.0
    far: np.ndarray = (ratios >= STANDS_OUT) & (logs >= DEVIATIONS * spread)
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
