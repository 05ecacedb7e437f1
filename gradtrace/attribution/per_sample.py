"""Which samples of a batch pull hardest: each one's own loss and gradient norm.

Per-sample gradients come from `vmap` over `grad` of the model as a function (torch.func), some
samples at a time; where an operation has no batching rule (LSTM, data-dependent control flow) from
a loop over the samples. The model is only read: parameters, buffers, `.grad`, modes and random
number generators are what they were.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from gradtrace.analysis.model import check_measurable, loss_of, read_only
from gradtrace.analysis.pytree import map_tensors, tensors_in
from gradtrace.records import SampleId

CHUNK = 8
"""Samples whose gradients exist at the same time."""


@dataclass(frozen=True, slots=True)
class SampleScore:
    """One sample's loss and the L2 norm of the gradient it alone would give."""

    sample_id: SampleId
    loss: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class Attribution:
    """The samples of a batch, in its order. `method` is "vmap" or "loop"."""

    samples: tuple[SampleScore, ...]
    method: str

    def ranked(self, by: str = "grad_norm") -> tuple[SampleScore, ...]:
        """Largest first, by "grad_norm" or "loss"; what is not finite comes before all."""
        if by not in ("grad_norm", "loss"):
            raise ValueError(f"cannot rank by {by!r}; expected 'grad_norm' or 'loss'")

        def size(score: SampleScore) -> float:
            value: float = getattr(score, by)
            return value if math.isfinite(value) else math.inf

        return tuple(sorted(self.samples, key=size, reverse=True))


def attribute(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch: Any,
    *,
    sample_ids: Sequence[SampleId] | None = None,
    chunk: int = CHUNK,
) -> Attribution:
    """Each sample's loss and gradient norm, in eval mode (no dropout, BatchNorm's running values).

    `batch` is any nesting of tensors [samples, ...]. `loss_fn` is either a criterion, called as
    `loss_fn(model(inputs), target)` with `batch = (inputs, target)` (as
    `torch.nn.functional.cross_entropy`), or a function whose first parameter is called `model`,
    called as `loss_fn(model, batch)`. It must return the mean over its batch. `sample_ids` name the
    samples; without them they are numbered. `chunk` samples' gradients are held at a time.

    Costs two to four training steps over the batch; for the calling thread. Raises TypeError or
    ValueError for arguments that do not fit together.
    """
    check_measurable(model, loss_fn)
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk is {chunk!r}; expected a number of samples, at least 1")
    tensors = list(tensors_in(batch))
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in tensors}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "batch holds tensors whose first dimensions are "
            f"{sorted(sizes) or 'missing'}; expected tensors with one row a sample"
        )
    [count] = sizes
    ids = tuple(range(count)) if sample_ids is None else tuple(sample_ids)
    if len(ids) != count:
        raise ValueError(f"sample_ids has {len(ids)} entries for a batch of {count} samples")
    single = _single_loss(model, loss_fn, batch)
    with read_only(model), warnings.catch_warnings():
        # Operations without a batching rule run in a loop of vmap's own, and say so.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        values, method = _measure(model, single, tensors, count, chunk)
    samples = [
        SampleScore(sample, loss, norm)
        for sample, (loss, norm) in zip(ids, values.tolist(), strict=True)
    ]
    return Attribution(tuple(samples), method)


_Parts = dict[str, Tensor]


def _single_loss(
    model: nn.Module, loss_fn: Callable[..., Tensor], whole: Any
) -> Callable[[_Parts, _Parts, list[Tensor]], Tensor]:
    """The loss of one sample, as a function of parameters, buffers and the sample's tensors."""

    def loss(parameters: _Parts, buffers: _Parts, rows: list[Tensor]) -> Tensor:
        given = iter(rows)
        batch = map_tensors(lambda _: next(given).unsqueeze(0), whole)
        # A copy of the buffers for each: under vmap a sample cannot write into what all share.
        state = {**parameters, **{name: b.clone() for name, b in buffers.items()}}

        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, state, args, kwargs)

        return loss_of(loss_fn, call, batch)

    return loss


def _measure(
    model: nn.Module,
    single: Callable[[_Parts, _Parts, list[Tensor]], Tensor],
    tensors: list[Tensor],
    count: int,
    chunk: int,
) -> tuple[Tensor, str]:
    """[count, 2] of loss and gradient norm, float64 on the CPU."""
    # named_parameters lists tied ones once, so their gradients add up as in training.
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    buffers = {name: b.detach() for name, b in model.named_buffers()} | fixed

    def one(rows: list[Tensor]) -> Tensor:
        gradients, loss = grad_and_value(single)(parameters, buffers, rows)
        squares = [g.abs().double().square().sum() for g in gradients.values()]
        return torch.stack([loss.double(), torch.stack(squares).sum().sqrt()])

    several = vmap(one, in_dims=([0] * len(tensors),), randomness="different")
    found: list[Tensor] = []
    for start in range(0, count, chunk):
        rows = [t[start : start + chunk] for t in tensors]
        try:
            found.append(several(rows))
        except (RuntimeError, NotImplementedError):
            if start:
                raise
            break
    else:
        return torch.cat(found).cpu(), "vmap"
    return torch.stack([one([t[i] for t in tensors]) for i in range(count)]).cpu(), "loop"
