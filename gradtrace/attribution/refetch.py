"""The samples behind a spike, fetched from the dataset again and measured one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from gradtrace.analysis.model import check_measurable
from gradtrace.analysis.pytree import map_tensors
from gradtrace.attribution.per_sample import SampleScore, attribute
from gradtrace.attribution.suspects import Suspects, rank
from gradtrace.records import SampleId, Spike


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

    The samples are those of the batches held responsible, `spike.blamed`. `dataset[id]` (or
    `dataset(id)`) must give a sample; `collate` makes a batch of a list of them (torch's own by
    default; where it refuses, samples are measured alone, and what cannot be made a batch of at
    all raises). `loss_fn` as for `gradtrace.attribute`.

    Costs two to four training steps. Raises ValueError when no batch is held responsible or no
    sample ids are known of it, KeyError when the dataset lacks one, TypeError or ValueError for
    arguments of the wrong kind.
    """
    check_measurable(model, loss_fn)
    if not isinstance(spike, Spike):
        raise TypeError(
            f"spike is a {type(spike).__name__}; expected a Spike, such as one of trace.spikes"
        )
    if not spike.blamed and (spike.batches or spike.previous_batches):
        why = f": {spike.suspicion}" if spike.suspicion else ""
        raise ValueError(
            f"no batch is held responsible for the spike at step {spike.step} (suspect: "
            f"{spike.suspect}{why}); expected a spike with `blamed` batches: look at its `causes`"
        )
    ids = list(dict.fromkeys(sample for batch in spike.blamed for sample in batch.sample_ids or ()))
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
    return rank(
        spike,
        [score.sample_id for score in scores],
        [score.loss for score in scores],
        [score.grad_norm for score in scores],
    )


def fetch(dataset: Any, ids: Sequence[SampleId]) -> list[Any]:
    """The samples of these ids: `dataset[id]`, or `dataset(id)` for a callable.

    Raises KeyError that names the id when there is no such sample.
    """
    get = dataset.__getitem__ if hasattr(dataset, "__getitem__") else dataset
    samples = []
    for sample in ids:
        try:
            samples.append(get(sample))
        except (LookupError, TypeError) as error:
            known = " a mapping from" if isinstance(sample, str) else ""
            raise KeyError(
                f"the dataset has no sample {sample!r} ({type(error).__name__}: {error}); give"
                f"{known or ' the dataset whose'} indices the spike names, or a callable from an "
                "id to its sample"
            ) from error
    return samples


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
