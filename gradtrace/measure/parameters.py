"""The parameters a trace watches, and the plans to measure any subset of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from typing import cast

import torch
from torch import Tensor, nn

from gradtrace.measure.blocks import SMALL, Blocks
from gradtrace.measure.chunks import Accumulator, Scratch, is_measurable
from gradtrace.measure.flat import is_partial, local
from gradtrace.measure.foreach import read_foreach
from gradtrace.measure.histograms import read_histograms
from gradtrace.measure.reading import Reading
from gradtrace.sampling import Sampling

# A loop that changes which parameters have gradients at every step must not fill the memory.
_MOST_PLANS = 32
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def clean_name(name: str) -> str:
    """A layer's name without the parts that torch's own wrappers put in."""
    for part in _WRAPPERS:
        name = name.replace(part, "")
    return name


def qualified(prefix: str, name: str) -> str:
    """`name` under the key of its model in a mapping of models."""
    return ".".join(part for part in (prefix, clean_name(name)) if part)


_GONE = nn.Parameter(torch.empty(0), requires_grad=False)
"""Stands where a parameter has left its model."""


class Parameters:
    """Names and tensors of the selected parameters, in the models' order; tied ones once.

    `models` maps a prefix ("" for a single model) to a module. `index` finds a parameter by id.
    """

    def __init__(self, models: Mapping[str, nn.Module], sampling: Sampling) -> None:
        self.models = models
        self._sampling = sampling
        self.names: tuple[str, ...] = ()
        self.tensors: list[nn.Parameter] = []
        self.replaced: set[int] = set()
        """Positions whose tensor is another since somebody last emptied this set."""
        self.index: dict[int, int] = {}
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._scratch = Scratch()
        self.partial: set[int] = set()
        """Positions whose gradients were found to be summands of what the ranks hold together."""
        self.refresh()

    def refresh(self) -> bool:
        """Looks at what the models hold now; returns whether anything was new. O(parameters).

        A name that has another tensor (a new head, densified splats, what FSDP made of it) is the
        same layer: it keeps its position, and the old tensor is let go. A name that is gone keeps
        its position too, without a tensor of the model's, so that those of open steps remain right.
        """
        names = list(self.names)
        at = {name: i for i, name in enumerate(names)}
        here: dict[int, int] = {}
        new = False
        for prefix, model in self.models.items():
            for name, parameter in model.named_parameters():
                full = qualified(prefix, name)
                if id(parameter) in here or not self._sampling.selects(full):
                    continue
                position = at.get(full)
                known = self.index.get(id(parameter))
                if position is None and known is not None and self.tensors[known] is parameter:
                    position = known  # known under a name that it had before
                if position is None:
                    position = at[full] = len(names)
                    names.append(full)
                    self.tensors.append(parameter)
                    new = True
                elif self.tensors[position] is not parameter:
                    self.tensors[position] = parameter
                    self.replaced.add(position)
                    new = True
                here[id(parameter)] = position
        for position in set(range(len(names))) - set(here.values()):
            if self.tensors[position] is not _GONE:
                self.tensors[position] = _GONE
                self.replaced.add(position)
                new = True
        self.index = here
        if len(names) > len(self.names):
            self.names = tuple(names)
        return new

    def holds(self, parameters: Sequence[object], positions: Sequence[int | None]) -> bool:
        """Whether these very parameters stand at `positions`; None stands for a stranger."""
        tensors, index = self.tensors, self.index
        if len(parameters) != len(positions):
            return False
        if None not in positions:
            places = cast("Sequence[int]", positions)
            return all(map(is_, map(tensors.__getitem__, places), parameters))
        return all(
            id(p) not in index if at is None else tensors[at] is p
            for p, at in zip(parameters, positions, strict=True)
        )

    def positions(self, parameters: Iterable[object]) -> tuple[int, ...]:
        """Where the watched ones among `parameters` stand."""
        index = self.index
        return tuple([index[id(p)] for p in parameters if id(p) in index])

    def read_gradients(
        self, positions: Sequence[int], *, full: bool
    ) -> tuple[list[Reading], list[int]]:
        """Starts measuring the gradients at `positions`; also returns those that have one.

        One that is `partial` has no numbers, for only a collective could tell them.
        """
        pairs = self._gradients(positions)
        readings = self.read([i for i, _ in pairs], [grad for _, grad in pairs], full=full)
        if not self.partial:
            return readings, [i for i, _ in pairs]
        return readings, [i for i in positions if self.tensors[i].grad is not None]

    def _gradients(self, positions: Iterable[int]) -> list[tuple[int, Tensor]]:
        """Position and local tensor of the gradients that can be read."""
        pairs = []
        for i in positions:
            grad = self.tensors[i].grad
            if grad is None:
                continue
            if is_partial(grad):
                self.partial.add(i)
            else:
                pairs.append((i, local(grad)))
        return pairs

    def count_gradients(self, positions: Sequence[int]) -> list[Reading]:
        """Starts counting the values of the gradients at `positions` by size, see `histograms`."""
        pairs = self._gradients(positions)
        if not pairs:
            return []
        present, grads = zip(*pairs, strict=True)
        with torch.no_grad():
            return read_histograms(present, grads, self._scratch)

    def copy_gradients(self, positions: Sequence[int]) -> list[Tensor | None]:
        """The gradients at `positions` as they are now; None where there is none to compare."""
        found = dict(self._gradients(positions))
        with torch.no_grad():
            return [
                grad.detach().clone()
                if (grad := found.get(i)) is not None and grad.layout is torch.strided
                else None
                for i in positions
            ]

    def cosine(self, positions: Sequence[int], before: Sequence[Tensor | None]) -> Tensor | None:
        """The cosine between copies of the gradients and what they are now; 0-dim, no waiting.

        None when there is nothing to compare, or on more than one device.
        """
        pairs = [
            (copy, local(grad).detach())
            for i, copy in zip(positions, before, strict=True)
            if copy is not None and (grad := self.tensors[i].grad) is not None
        ]
        if not pairs or len({copy.device for copy, _ in pairs}) > 1:
            return None
        with torch.no_grad():
            sums = torch.stack(
                [
                    torch.stack([(b * a).sum(), (b * b).sum(), (a * a).sum()]).double()
                    for b, a in ((b.float(), a.float()) for b, a in pairs)
                ]
            ).sum(0)
            return sums[0] / (sums[1] * sums[2]).sqrt()

    def read(
        self,
        positions: Sequence[int],
        tensors: Sequence[Tensor],
        *,
        full: bool,
        norm_only: bool = False,
    ) -> list[Reading]:
        """Starts measuring tensors that lie like the parameters at `positions`.

        `full` asks an accelerator for every column; a CPU measures all of them but for `norm_only`.
        O(layers) calls; nothing waits for a device.
        """
        if not positions:
            return []
        key = tuple(positions)
        plan = self._plans.get(key)
        if plan is None or not plan.fits(tensors):
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            with torch.inference_mode(False):  # its buffers serve outside of it, too
                plan = self._plans[key] = _Plan(positions, tensors, self._scratch)
        with torch.no_grad():
            return plan.read(tensors, full, norm_only)

    def accumulator(self, most: int = sys.maxsize) -> Accumulator:
        """For at most so many tensors that come one at a time; shares this object's memory."""
        return Accumulator(self._scratch, most)


class _Plan:
    """Which of a fixed list of tensors go through blocks, chunks or foreach."""

    def __init__(
        self, positions: Sequence[int], tensors: Sequence[Tensor], scratch: Scratch
    ) -> None:
        self._positions = list(positions)
        self._kinds = [_kind(tensor) for tensor in tensors]
        self._scratch = scratch
        self._small = [i for i, t in enumerate(tensors) if _kind(t) == _BLOCK]
        self._large = [i for i, t in enumerate(tensors) if _kind(t) == _CHUNK]
        self._device = [i for i, t in enumerate(tensors) if _kind(t) == _FOREACH]
        self._layouts = [t.layout for t in tensors]
        self._shapes = [t.shape for t in tensors]
        self._blocks = Blocks(
            [self._positions[i] for i in self._small],
            [tensors[i] for i in self._small],
            torch.device("cpu"),
        )

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are as they were: one may turn sparse or grow, a model may move."""
        return (
            [t.shape for t in tensors] == self._shapes
            and [t.layout for t in tensors] == self._layouts
            and all(_kind(tensors[i]) == self._kinds[i] for i in (0, len(tensors) - 1))
        )

    def read(self, tensors: Sequence[Tensor], full: bool, norm_only: bool) -> list[Reading]:
        readings = []
        if self._small:
            small = [tensors[i] for i in self._small]
            readings += self._blocks.read(small, norm_only=norm_only)
        if self._device:
            readings += read_foreach(
                [self._positions[i] for i in self._device],
                [tensors[i] for i in self._device],
                full=full,
            )
        if self._large:
            accumulator = Accumulator(self._scratch)
            for i in self._large:
                accumulator.add(self._positions[i], tensors[i], norm_only=norm_only)
            if accumulator:
                readings.append(accumulator.reading())
        return readings


_BLOCK, _CHUNK, _FOREACH, _NONE = range(4)


def _kind(tensor: Tensor) -> int:
    if not is_measurable(tensor):
        return _NONE
    if tensor.device.type == "cpu":
        small = tensor.layout is torch.strided and tensor.numel() <= SMALL
        return _BLOCK if small else _CHUNK
    if tensor.layout is torch.strided:
        return _FOREACH
    # Coalescing on an accelerator would wait for it.
    waits = tensor.layout is torch.sparse_coo and not tensor.is_coalesced()
    return _NONE if waits else _CHUNK
