"""Which samples of a batch pull hardest: each one's own loss and gradient norm.

Per-sample gradients come from `vmap` over `grad` of the model as a function (torch.func), some
samples at a time; where an operation has no batching rule (LSTM, data-dependent control flow) from
a loop over the samples. The model is only read: parameters, buffers, `.grad`, modes and random
number generators are what they were.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from gradtrace.analysis.pytree import map_tensors, tensors_in
from gradtrace.records import SampleId

CHUNK = 8
"""Samples whose gradients exist at the same time."""

_MODEL_NAMES = ("model", "module", "net", "network")


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

    `batch` is any nesting of tensors whose first dimension counts samples. `loss_fn` is either a
    criterion, called as `loss_fn(model(inputs), target)` with `batch = (inputs, target)` (as
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
    with _read_only(model):
        values, method = _measure(model, single, tensors, count, chunk)
    samples = [
        SampleScore(sample, loss, norm)
        for sample, (loss, norm) in zip(ids, values.tolist(), strict=True)
    ]
    return Attribution(tuple(samples), method)


def check_measurable(model: Any, loss_fn: Any) -> None:
    """Raises TypeError or ValueError unless the model has gradients and the loss can be called."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(loss_fn, type):
        raise TypeError(
            f"loss_fn is the class {loss_fn.__name__}; expected a callable from outputs and "
            f"targets to the loss: make an instance, {loss_fn.__name__}()"
        )
    if not callable(loss_fn):
        raise TypeError(f"loss_fn is a {type(loss_fn).__name__}; expected a callable")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "the model has no parameter that requires a gradient, so samples cannot be compared; "
            "expected it as it was trained: call model.requires_grad_()"
        )


_Parts = dict[str, Tensor]


def _single_loss(
    model: nn.Module, loss_fn: Callable[..., Tensor], whole: Any
) -> Callable[[_Parts, _Parts, list[Tensor]], Tensor]:
    """The loss of one sample, as a function of parameters, buffers and the sample's tensors."""
    takes_model = _takes_model(loss_fn)

    def loss(parameters: _Parts, buffers: _Parts, rows: list[Tensor]) -> Tensor:
        given = iter(rows)
        batch = map_tensors(lambda _: next(given).unsqueeze(0), whole)
        # A copy of the buffers: what a forward writes into them must not reach the model.
        state = {**parameters, **{name: b.clone() for name, b in buffers.items()}}

        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, state, args, kwargs)

        if takes_model:
            return _scalar(loss_fn(call, batch))
        try:
            inputs, target = batch
        except (TypeError, ValueError):
            raise ValueError(
                f"batch is a {type(batch).__name__}; a criterion needs a pair (inputs, target): "
                "otherwise give a loss_fn(model, batch)"
            ) from None
        return _scalar(loss_fn(call(inputs), target))

    return loss


def _scalar(found: Any) -> Tensor:
    if not isinstance(found, Tensor):
        raise TypeError(
            f"loss_fn returned a {type(found).__name__}; expected a tensor, the mean loss of its "
            "batch: return it without .item() or float()"
        )
    if found.numel() != 1:
        raise ValueError(
            f"loss_fn returned a tensor of shape {tuple(found.shape)}; expected one value, the "
            "mean loss of its batch: use reduction='mean'"
        )
    return found.reshape(())


def _takes_model(loss_fn: Callable[..., Any]) -> bool:
    try:
        first = next(iter(inspect.signature(loss_fn).parameters.values()), None)
    except (TypeError, ValueError):
        return False
    return first is not None and first.name in _MODEL_NAMES


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


@contextmanager
def _read_only(model: nn.Module) -> Iterator[None]:
    """Eval mode and forked generators; each module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(), warnings.catch_warnings():
        # Operations without a batching rule run in a loop of vmap's own, and say so.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


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
