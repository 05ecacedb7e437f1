"""The observer of all taps on behalf of one trace: every method guarded and timed."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gradtrace.collect.amp import LossScales
from gradtrace.collect.batches import Batches
from gradtrace.collect.collector import Collector
from gradtrace.guard import Guard
from gradtrace.handover.step import ClipCall
from gradtrace.measure.flat import whole
from gradtrace.measure.parameters import qualified
from gradtrace.measure.reading import Pending, pending
from gradtrace.sampling import Due, Sampling
from gradtrace.taps import (
    backward,
    clipping,
    compiled,
    loaders,
    modules,
    optimizers,
    scaler,
    threads,
    zeroing,
)
from gradtrace.taps.patches import Target, registry

Note = Callable[[str, str], None]


class Observer:
    """Installs the taps, and tells the collector what they see."""

    def __init__(
        self,
        collector: Collector,
        models: Mapping[str, nn.Module],
        sampling: Sampling,
        guard: Guard,
        note: Note,
        batches: Batches,
    ) -> None:
        self._collector = collector
        self._models = models
        self._guard = guard
        self._note = note
        self._batches = batches
        self._losses = LossScales()
        self._fired_inside_scaler = False
        self._compiled_runs = 0
        self._was_armed = False
        self.on_first_backward: Callable[[], None] | None = None
        """Called once, before the next backward, in the training thread."""
        self.failure: tuple[type[BaseException], int] | None = None
        """What has ended the thread that trained, and after how many backwards."""
        names = modules.module_names(models, qualified, sampling.selects)
        self._modules = modules.ModuleTap(names, collector.outputs, guard.wrap, note)
        wrap = guard.wrap
        self.before_backward = wrap("the backward tap", self._before_backward)
        self.after_backward = wrap("the backward tap", self._after_backward)
        self.zeroed = wrap("the zeroing tap", collector.zeroed)
        self.before_clip = wrap("the clipping tap", collector.before_clip)
        self.after_norm_clip = wrap("the clipping tap", self._after_norm_clip)
        self.after_value_clip = wrap("the clipping tap", self._after_value_clip)
        self.before_step = wrap("the optimizer tap", self._before_step)
        self.after_step = wrap("the optimizer tap", self._after_step)
        self.scaled = wrap("the scaler tap", self._losses.scaled)
        self.unscaled = wrap("the scaler tap", self._unscaled)
        self.before_scaler_step = wrap("the scaler tap", self._before_scaler_step)
        self.after_scaler_step = wrap("the scaler tap", self._after_scaler_step)
        self._wanted = wrap("the loader tap", self._batches.wants)
        self.begins = wrap("the loader tap", self._batches.begin)
        self.delivered = wrap("the loader tap", self._delivered)
        self.ended = wrap("the loader tap", self._batches.ended)
        self.compiled_begins = wrap("the compiler tap", self._modules.compiled_begins)
        self.compiled_ends = wrap("the compiler tap", self._compiled_ends)

    def attach(self, stack: ExitStack) -> None:
        """Installs every tap; `stack` takes what undoes each the moment it exists."""
        self._install(stack, "losses", backward.backward_target)
        try:
            for target in compiled.compiled_targets():
                stack.callback(registry.attach(target, self))
        except AttributeError as error:
            self._missing("compiled code", error)
        self._install(stack, "the ends of threads", threads.thread_target)
        for name, found in (
            *clipping.clip_targets(),
            *scaler.scaler_targets(),
            *zeroing.zero_targets(),
        ):
            self._install_target(stack, name, found)
        fsdp = clipping.fsdp_target()
        if fsdp is not None:
            self._install_target(stack, "FSDP clipping", fsdp)
        stack.callback(self._modules.disarm)
        _attached.add(self)
        if modules.compiled_regions(self._models):
            self._note("activations", _COMPILED)
        self._collector.borders.on_open(self._arm)
        for name, attach in (("optimizers", optimizers.attach), ("batches", loaders.attach)):
            try:
                stack.callback(attach(self))
            except AttributeError as error:
                self._missing(name, error)

    def forked(self) -> None:
        """In a forked child: nothing is observed, for no thread would take it."""
        self._modules.disarm()

    def batches(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """Any iterable's items, each known to the step that consumes it."""
        if loaders.is_loader(iterable):
            self._batches.want(iterable)
            return iter(iterable)
        return loaders.watched(iterable, self)

    def take(self, loader: Any, epoch: int | None, batch_index: int | None) -> bool:
        """A loader's next held batch goes to the next backward."""
        return self._batches.take_by_hand(loader, epoch, batch_index)

    @property
    def delivered_batches(self) -> int:
        """How many batches the loop has got."""
        return self._batches.count

    def forward_order(self) -> Mapping[str, int]:
        """The rank of each module in the order of first execution, as far as it is known."""
        return self._modules.order()

    def _install(self, stack: ExitStack, name: str, find: Callable[[], Target]) -> None:
        try:
            target: Target | AttributeError = find()
        except AttributeError as error:
            target = error
        self._install_target(stack, name, target)

    def _install_target(self, stack: ExitStack, name: str, target: Target | AttributeError) -> None:
        if isinstance(target, AttributeError):
            self._missing(name, target)
        else:
            stack.callback(registry.attach(target, self))

    def _missing(self, name: str, error: AttributeError) -> None:
        self._note(
            name, f"torch {torch.__version__} differs here, so {name} cannot be watched: {error}"
        )

    def _arm(self, due: Due) -> None:
        if self._compiled_runs and self._was_armed and self._modules.unseen:
            self._note("activations", _COMPILED)
        self._was_armed = due.activations
        self._modules.arm(due.activations)

    def _compiled_ends(self) -> None:
        self._modules.compiled_ends()
        if not self._collector.trainer.here():
            return
        self._compiled_runs = runs = self._compiled_runs + 1
        if runs > 1 and not runs & (runs - 1) and self._collector.moved_unseen():
            self._note(
                "steps",
                "parameters have moved, and neither a backward nor an optimizer step was seen: the "
                "whole step runs in code that torch.compile made, where nothing can be observed; "
                "compile the model instead of the step, model = torch.compile(model)",
            )

    def thread_ended(self, error: type[BaseException]) -> None:
        """An exception has ended the calling thread: the run's end, if it trained in it."""
        if self._collector.trainer.here():
            self.failure = (error, self._collector.backwards)

    # -- losses ---

    def _before_backward(self, outputs: Sequence[Any]) -> Any:
        call, self.on_first_backward = self.on_first_backward, None
        if call is not None:
            call()
        return self._collector.before_backward()

    def _after_backward(
        self, outputs: Sequence[Any], weights: Sequence[Any], inputs: Sequence[Any], token: Any
    ) -> None:
        if token:
            loss, scale = self._losses.loss(outputs, weights)
            ours = self._collector.after_backward(
                token, loss, scale, aside=lambda: self._is_aside(outputs, inputs)
            )
            if ours and loss is None:
                self._note(
                    "loss",
                    f"a backward started from {backward.described(outputs)}, which shows no loss: "
                    "such steps have none; say what it is with trace.log(loss=...)",
                )

    def _is_aside(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> bool:
        """Whether a backward through the model was kept from its parameters, as by an attack."""
        return bool(inputs) and backward.comes_from(outputs, self._collector.watches)

    # -- clipping ---

    def _after_norm_clip(self, token: Any, max_norm: Any, total_norm: Tensor, order: Any) -> None:
        if token:
            known = whole(total_norm.detach() if total_norm.requires_grad else total_norm)
            norm = None if known is None else Pending(known.clone())
            limit = max_norm if type(max_norm) is float else pending(_kept(max_norm))
            self._collector.after_clip(ClipCall("norm", token, limit, norm, float(order)))

    def _after_value_clip(self, token: Any, clip_value: Any) -> None:
        if token:
            self._collector.after_clip(ClipCall("value", token, pending(_kept(clip_value))))

    # -- optimizer and scaler ---

    def _before_step(self, optimizer: Any, closure: bool, inside: bool) -> None:
        if self._collector.before_step(optimizer, closure=closure, in_backward=inside):
            self._fired_inside_scaler = True

    def _after_step(self, optimizer: Any, closure: bool, inside: bool) -> None:
        self._collector.after_step(optimizer, closure=closure, in_backward=inside)

    def _unscaled(self, by: Any, optimizer: Any) -> None:
        self._collector.unscaled(optimizer, scaler.loss_scale(by))

    def _before_scaler_step(self, by: Any, optimizer: Any) -> Any:
        self._fired_inside_scaler = False
        return self._collector.before_scaler_step(optimizer, scaler.loss_scale(by))

    def _after_scaler_step(self, token: Any, optimizer: Any, returned: bool) -> None:
        if token:
            skipped = returned and not self._fired_inside_scaler
            self._collector.after_scaler_step(optimizer, skipped=skipped)

    # -- batches ---

    def wants(self, loader: Any) -> bool:
        """Whether an iteration that begins in this thread is of interest."""
        return self._collector.trainer.here() and bool(self._wanted(loader))

    def _delivered(self, stream: Any, indices: Any, data: Any) -> None:
        self._collector.delivered()
        self._batches.delivered(stream, indices, data)


_COMPILED = (
    "activations and output gradients inside compiled regions are not observed: hooks would have "
    "the compiler break or repeat its work; gradients, weights and updates are: trace a model that "
    "is not compiled to see them"
)


def _kept(limit: Any) -> Any:
    """A copy of what may change later."""
    if not isinstance(limit, Tensor):
        return limit
    known = whole(limit.detach())
    return math.nan if known is None else known.clone()


_attached: weakref.WeakSet[Observer] = weakref.WeakSet()
"""Per process by nature: a fork concerns every observer there is."""


def _after_fork() -> None:
    # What was replaced forgets its observers by itself, see `Registry`; torch's hooks do not.
    for observer in list(_attached):
        observer.forked()


os.register_at_fork(after_in_child=_after_fork)
