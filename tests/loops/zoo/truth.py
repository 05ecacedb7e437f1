"""What a training loop itself writes down: the truth that a trace of it is held to.

A loop says after each backward which loss and batches it was of, reads the gradients' norms in
float64 where they are what the loss made them, and says when an optimizer has used them. Nothing
here knows gradtrace.
"""

from __future__ import annotations

import gc
import math
import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.inventory import inventory

Ids = tuple[int | str, ...] | None
Batch = tuple[int | None, int, Ids]
"""Epoch, index in the epoch, sample ids. An epoch of None may be any: what it is, is a matter of
taste where a loader is iterated for other purposes, too."""
Models = nn.Module | Mapping[str, nn.Module]


@dataclass(frozen=True)
class ClipTruth:
    """`sure` is False where a loop that clips by hand left the gradients as they were."""

    kind: str
    before: float
    after: float
    sure: bool = True

    @property
    def coefficient(self) -> float:
        """What the gradients were multiplied by, all in all."""
        return self.after / self.before if self.before else 1.0


@dataclass
class Step:
    """One use of gradients. `lr` and `losses` of None are not compared.

    `losses_or` is another list of losses that is as right. `joined` allows the step to share its
    record with the one before, `lacks` names what may be missing if a note says so, `reused` that
    its batches may be missing because an earlier step had them, `unsure` what is not compared (of
    rows: those that the truth does not have).
    """

    losses: tuple[float, ...] | None
    loss: float | None
    norm: float | None
    rows: dict[str, float]
    clip: ClipTruth | None
    batches: tuple[Batch, ...]
    lr: tuple[float, ...] | None
    skipped: bool = False
    joined: bool = False
    reused: bool = False
    losses_or: tuple[float, ...] | None = None
    lacks: Set[str] = frozenset()
    unsure: Set[str] = frozenset()


@dataclass
class Discard:
    """Gradients that were thrown away, and what they had been made of."""

    losses: tuple[float, ...]
    batches: tuple[Batch, ...]
    norm: float


@dataclass
class Truth:
    """`also` are the truths of the traces that the loop opens after its first."""

    steps: list[Step] = field(default_factory=list)
    discards: list[Discard] = field(default_factory=list)
    explored: int = 0
    """Gradients that moved parameters, or were copied, before they were thrown away."""
    also: list[Truth] = field(default_factory=list)
    numbers: dict[str, bytes] = field(default_factory=dict)
    left: dict[str, Any] = field(default_factory=dict)
    """What hangs on the user's objects at the end."""
    living: dict[str, weakref.ref[Any]] = field(default_factory=dict)
    undead: list[str] = field(default_factory=list)
    checks: list[Callable[[Any], str | None]] = field(default_factory=list)
    quiet: bool = True
    """Whether any note would be a wrong one."""
    words: list[tuple[str, ...]] = field(default_factory=list)
    """For each entry there must be a note with one of its words."""
    unseen: bool = False
    """Whether a trace may see nothing at all, provided that `words` are said."""

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._losses: list[float] = []
        self._batches: list[Batch] = []
        self._rows: dict[str, float] = {}
        self._clips: list[tuple[str, frozenset[int], float, float]] = []

    # -- what the loop tells ---

    def backward(self, loss: Tensor | float, *batches: Batch) -> None:
        """A backward from this loss, of these batches, ended."""
        value = float(loss.detach()) if isinstance(loss, Tensor) else loss
        self._losses.append(value)
        self._batches += batches
        self.keep("loss", torch.tensor(value, dtype=torch.float64, device="cpu"))
        self.numbers[f"batches {len(self.numbers)}"] = repr(batches).encode()

    @property
    def open(self) -> bool:
        """Whether a backward has not been used yet."""
        return bool(self._losses)

    def gradients(self, models: Models, *optimizers: Optimizer, scale: float = 1.0) -> None:
        """The gradients are now what the losses made them, times `scale`."""
        owned = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        for name, parameter in named(models):
            if parameter.grad is not None and (not optimizers or id(parameter) in owned):
                self._rows[name] = norm_of(parameter.grad) / scale

    @contextmanager
    def clipping(self, kind: str, parameters: Iterable[Tensor]) -> Iterator[None]:
        """What runs inside clips the gradients of these parameters."""
        parameters = list(parameters)
        before = total(parameters)
        yield
        self._clips.append((kind, frozenset(map(id, parameters)), before, total(parameters)))

    def step(self, *optimizers: Optimizer, **fields: Any) -> None:
        """The gradients were used: a record is due. `fields` are those of `Step`."""
        losses = tuple(self._losses)
        lr = tuple(float(group["lr"]) for o in optimizers for group in o.param_groups)
        self.steps.append(
            Step(
                **{
                    "losses": losses,
                    "loss": sum(losses) / len(losses) if losses else None,
                    "norm": math.hypot(*self._rows.values()) if self._rows else None,
                    "rows": self._rows,
                    "clip": self._clip(),
                    "batches": tuple(self._batches),
                    "lr": lr or None,
                }
                | fields
            )
        )
        self._start()

    def discard(self) -> None:
        """The gradients were thrown away."""
        norm = math.hypot(*self._rows.values())
        self.discards.append(Discard(tuple(self._losses), tuple(self._batches), norm))
        self._start()

    def explore(self) -> None:
        """The gradients were thrown away, after the loop had used them for something else."""
        self.explored += 1
        batches = self._batches
        self._start()
        self._batches = batches

    def note(self, *words: str) -> None:
        """A note with one of these words is due, and others may stand beside it."""
        self.words.append(words)
        self.quiet = False

    def may_lack_batches(self, *steps: int) -> None:
        """These steps, or all, may have no batches if a note says so."""
        self.quiet = False
        for k in steps or range(len(self.steps)):
            self.steps[k].lacks |= {"batches"}

    def another(self) -> Truth:
        """The truth of the next trace that the loop opens."""
        self.also.append(Truth())
        return self.also[-1]

    # -- what must not change, and must not stay ---

    def keep(self, name: str, value: Tensor) -> None:
        """A number that must be bitwise the same without a trace."""
        self.numbers[f"{name} {len(self.numbers)}"] = bits(value)

    def finish(self, **things: Any) -> None:
        """Takes down the state, the attributes and hooks, and the life of all these objects."""
        for label, thing in things.items():
            self._finish(label, thing)
        self.numbers["torch's random state"] = bits(torch.get_rng_state())
        self.numbers["numpy's random state"] = repr(np.random.get_state()).encode()
        self.numbers["python's random state"] = repr(random.getstate()).encode()

    def _finish(self, label: str, thing: Any) -> None:
        if isinstance(thing, list | tuple):
            for k, each in enumerate(thing):
                self._finish(f"{label}[{k}]", each)
            return
        for name, value in state(thing):
            self.numbers[f"{label}.{name}"] = bits(value)
        self.left |= inventory(label, thing)
        self.living[label] = weakref.ref(thing)

    def dies(self, label: str, old: object) -> weakref.ref[Any]:
        """The loop lets go of this object; `buried` looks whether anybody else holds it."""
        ref = weakref.ref(old)
        self.living[f"{label}, replaced {len(self.living)}"] = ref
        return ref

    def buried(self, *refs: weakref.ref[Any]) -> None:
        """Looks, inside the trace, whether replaced objects are gone."""
        gc.collect()
        self.undead += [f"object {k}" for k, ref in enumerate(refs) if ref() is not None]

    # -- helpers ---

    def _clip(self) -> ClipTruth | None:
        """All clipping of a step: calls on the same parameters follow each other, others join."""
        if not self._clips:
            return None
        groups: list[tuple[frozenset[int], float, float]] = []
        for _, positions, before, after in self._clips:
            for k, (seen, first, _) in enumerate(groups):
                if seen & positions:
                    groups[k] = (seen | positions, first, after)
                    break
            else:
                groups.append((positions, before, after))
        kinds = {kind for kind, *_ in self._clips}
        kind = kinds.pop() if len(kinds) == 1 else "custom"
        by_hand = kind.startswith("own ")
        before = math.hypot(*(group[1] for group in groups))
        after = math.hypot(*(group[2] for group in groups))
        touched = not math.isclose(before, after, rel_tol=1e-9)
        return ClipTruth(kind.removeprefix("own "), before, after, sure=touched or not by_hand)


def named(models: Models) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter by the name that a trace gives it."""
    for prefix, model in models.items() if isinstance(models, Mapping) else (("", models),):
        for name, parameter in model.named_parameters():
            name = name.replace("_orig_mod.", "")
            yield f"{prefix}.{name}" if prefix else name, parameter


def norm_of(tensor: Tensor) -> float:
    """The L2 norm in float64."""
    tensor = tensor.detach()
    values = (tensor.coalesce().values() if tensor.is_sparse else tensor).double().numpy()
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.sum(values * values)))


def total(parameters: Iterable[Tensor]) -> float:
    """The L2 norm of all gradients together."""
    return math.hypot(*(norm_of(p.grad) for p in parameters if p.grad is not None))


def bits(value: Tensor) -> bytes:
    """The value as it lies in memory."""
    if value.is_sparse:
        value = value.to_dense()
    flat = value.detach().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def state(thing: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a module, an optimizer or a scaler."""
    if isinstance(thing, nn.Module):
        yield from thing.state_dict().items()
        for name, parameter in thing.named_parameters():
            if parameter.grad is not None:
                yield f"{name}.grad", parameter.grad
    elif isinstance(thing, Optimizer):
        parameters = [p for group in thing.param_groups for p in group["params"]]
        for k, parameter in enumerate(parameters):
            for name, value in thing.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"{k}.{name}", value
    elif isinstance(thing, torch.amp.GradScaler):
        yield "scale", torch.tensor(thing.get_scale())
