"""The training thread's side of a trace: what taps report becomes one step after another.

Taps call the methods here with what they saw; the collector has gradients, weights and updates read
at the right moments and hands each finished step over. It never waits and never reads a value.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from gradtrace.collect.batches import Batches
from gradtrace.collect.borders import Borders
from gradtrace.collect.clipping import Clipping
from gradtrace.collect.ledger import Ledger
from gradtrace.collect.logged import Logged
from gradtrace.collect.losses import Losses
from gradtrace.collect.measuring import Guarded, Measuring, Note
from gradtrace.collect.optimizers import Owners
from gradtrace.collect.outputs import Outputs
from gradtrace.collect.schedule import Schedule
from gradtrace.collect.sealing import Sealing
from gradtrace.collect.trainer import Trainer
from gradtrace.collect.uses import Uses
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import ClipCall, Handed, Leftovers, Part, Step
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Pending, pending


def _unguarded(source: str, function: Callable[..., None]) -> Callable[..., None]:
    return function


class Collector:
    """One trace's open step. All methods run in the training thread.

    `overhead` tells the seconds spent so far, `note` is told what could not be observed, `guarded`
    holds back the errors of what shall cost nothing else.
    """

    def __init__(
        self,
        parameters: Parameters,
        schedule: Schedule,
        handoff: Handoff[Handed],
        *,
        batches: Batches,
        rank: int,
        overhead: Callable[[], float],
        note: Note,
        guarded: Guarded = _unguarded,
        step_after: Optimizer | None = None,
    ) -> None:
        self._parameters = parameters
        self._schedule = schedule
        self._handoff = handoff
        self._batches = batches
        self._note = note
        self.trainer = Trainer(note)
        self.outputs = Outputs(parameters, note)
        self._ledger = Ledger(parameters)
        self._reader = GradientReader(parameters)
        self._clipping = Clipping(parameters, self._reader, self._ledger, note)
        self._measuring = Measuring(
            parameters,
            self._reader,
            handoff,
            every=schedule.sampling.histograms,
            note=note,
            guarded=guarded,
        )
        self._owners = Owners(parameters)
        self._sealing = Sealing(
            parameters,
            schedule,
            handoff,
            owners=self._owners,
            outputs=self.outputs,
            measuring=self._measuring,
            rank=rank,
            overhead=overhead,
        )
        self.borders = Borders(
            parameters,
            schedule,
            owners=self._owners,
            ledger=self._ledger,
            outputs=self.outputs,
            seal=self._sealing.seal,
            step_after=step_after,
            note=note,
        )
        self.uses = Uses(
            parameters,
            ledger=self._ledger,
            reader=self._reader,
            clipping=self._clipping,
            borders=self.borders,
            note=note,
        )
        self._logged = Logged(handoff.put)
        self.by_hand = False
        """Whether the user closes steps; then nothing else does."""
        self._moved_in_backward: list[int] = []
        self._scaler_steps = 0
        self._losses = Losses(note)
        trained = next((p for p in parameters.tensors if p.requires_grad), parameters.tensors[0])
        self._first, self._first_version = weakref.ref(trained), trained._version
        self.backwards = self.others = self.elsewhere = self.strangers = 0
        """Backwards that reached watched parameters, those that did not, those of other threads;
        steps of optimizers that hold other parameters only."""

    @property
    def open(self) -> Step:
        """The open piece of a step."""
        return self.borders.open

    def _read(self, positions: Iterable[int]) -> None:
        self._measuring.gradients(self.open, tuple(positions), self.borders.before)

    def _is_eager(self, scale: Tensor | None) -> bool:
        """Whether gradients are read right after a backward, before anything can change them.

        They are where a step is expected to follow, so that what the loop's own code does to them
        is seen; earlier ones, and those the scaler is to unscale, would be read twice. Within a
        closure an optimizer of optimizers may use them at once.
        """
        unusual = self._clipping.changes_unannounced or self.by_hand or self.uses.in_closure
        last = scale is None and self.uses.expects_use
        return (last or unusual or self._schedule.beginning) and self.open.due.gradients

    # -- batches, losses, values ---

    def delivered(self) -> None:
        """A batch was delivered to the loop."""
        self._logged.of_last()

    def log(self, values: Mapping[str, float | Tensor]) -> None:
        """Values the user logs: they belong to the step that is open, or has just ended."""
        step: Step | None = self.open
        if self.borders.pieces and not step and not self._ledger.alive:
            step = self.borders.pieces[-1].step
        elif not (step or self._batches.waiting or self._ledger.alive or self._schedule.step == 0):
            step = None
        self._logged.put(values, step, hold=self.by_hand)

    def divide(self, by: float) -> None:
        """Losses that follow were divided by so much before their backward."""
        self._losses.divisor = by

    def zeroed(self, owner: Optimizer | nn.Module) -> None:
        """`owner.zero_grad()` returned."""
        if not self.trainer.here():
            return
        if isinstance(owner, Optimizer):
            positions = self._owners.positions_of(owner)
        else:
            positions = self._parameters.positions(owner.parameters())
        self.uses.zeroed(positions)

    def before_backward(self) -> bool:
        """A backward begins; whether `after_backward`, which gets the answer, has work to do."""
        if not self.trainer.here():
            self.elsewhere += 1
            return False
        self._logged.of_last()
        self.uses.settle()
        return True

    def watches(self, tensor: object) -> bool:
        """Whether this is one of the watched parameters."""
        return id(tensor) in self._parameters.index

    def after_backward(
        self,
        token: bool,
        loss: Tensor | None,
        scale: Tensor | None,
        *,
        aside: Callable[[], bool] = lambda: False,
    ) -> bool:
        """A backward ended; whether it reached watched parameters.

        `loss` is a copy of the unscaled loss, `scale` what multiplied it. `aside` is asked whether
        one that reached none went through this model all the same.
        """
        if not token:
            return False
        part = self._losses.part(loss)
        written = self.uses.written(part)
        if not (written or self._moved_in_backward):
            if not aside():
                self.others += 1
                self._losses.strange()
            return False  # another model's, or one that was to leave the parameters alone
        self._losses.counted()
        self.backwards += 1
        if self._ledger.overflown:
            self._losses.too_many()
        part.batches = (*self.uses.backward(written), *self._batches.take())
        if scale is not None:
            self.open.scale = scale
            self._reader.scaled(written)
        if self._moved_in_backward:
            self._after_moving_backward(part)
            return True
        if self._is_eager(scale):
            self._read(written)
        if self.by_hand and self.open.due.updates:
            self._measuring.before_update(self.open, -1, written)
        return True

    def _after_moving_backward(self, part: Part) -> None:
        """Optimizers have stepped inside the backward; another that uses the rest joins them."""
        self._moved_in_backward = []
        part.used = True
        self.open.parts.append(part)
        self.borders.end()

    # -- clipping ---

    def before_clip(self, parameters: Iterable[object]) -> tuple[int, ...]:
        """A clipping call begins on these parameters; the watched ones among them, by position.

        Some loops call it once for each parameter, so what it costs is a few microseconds.
        """
        positions = self._parameters.positions(parameters)
        step = self.borders.open
        if not positions or not self.trainer.here():
            if not any(True for _ in parameters):
                self._clipping.nothing(step)
            return ()
        self._clipping.begins(step, positions, first=self._schedule.step == 0)
        if step.due.gradients and not self._reader.is_fresh(positions):
            # All at once: one call for each parameter would cost each a reading of its own.
            self._read(self._ledger.waiting() or positions)
        if self._clipping.bounds_values:
            self._clipping.before(step, positions)
        return positions

    def after_clip(self, call: ClipCall) -> None:
        """A clipping call returned."""
        self._clipping.after(self.borders.open, call)

    # -- AMP ---

    def unscaled(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """`GradScaler.unscale_` returned: the gradients are what they are, bad values included."""
        positions = self._owners.positions_of(optimizer)
        if not positions or not self.trainer.here():
            return
        self._reader.unscaled(positions)
        self._ledger.known(positions)
        self.open.scale = scale
        if self.open.due.gradients:
            self._read(positions)

    def before_scaler_step(self, optimizer: Optimizer, scale: Tensor | None) -> bool:
        """`GradScaler.step` begins; whether the optimizer is one of ours."""
        positions = self._owners.positions_of(optimizer)
        if not positions or not self.trainer.trains():
            return False
        self.open.scale = scale
        self.uses.look(positions)
        self._scaler_steps += 1
        return True

    def after_scaler_step(self, optimizer: Optimizer, *, skipped: bool) -> None:
        """`GradScaler.step` returned; `skipped` if it never called the optimizer."""
        self._scaler_steps -= 1
        if skipped:
            positions = self._owners.positions_of(optimizer)
            self.borders.join(optimizer, positions)
            self.open.skipped = True
            self._stepped(optimizer, positions)
            self.borders.end()

    # -- optimizer steps ---

    def before_step(self, optimizer: Optimizer, *, closure: bool, in_backward: bool) -> bool:
        """The outermost `step` of an optimizer begins; whether it is one of ours."""
        positions = self._owners.positions_of(optimizer)
        if not positions:
            if self.trainer.here():
                self._losses.used()
                self.strangers += 1
            return False
        if not self.trainer.trains():
            return False
        self.uses.grow()
        if not closure:
            self.borders.join(optimizer, positions)
            if not in_backward and not self._scaler_steps:
                self.uses.look(positions)
        self.uses.in_closure = closure
        due = self.open.due
        if due.gradients:
            if in_backward:
                self._measuring.loose(self.open, positions, self.outputs.loose, self.borders.before)
            elif not closure:
                self._read(positions + self._owners.nobodys())
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):
            self.open.found_inf.append(Pending(found_inf.detach().clone()))
        if due.updates and not in_backward:
            self._measuring.before_update(self.open, id(optimizer), positions)
        return True

    def after_step(self, optimizer: Optimizer, *, closure: bool, in_backward: bool) -> None:
        """The outermost `step` of an optimizer returned."""
        positions = self._owners.positions_of(optimizer)
        if not positions or not self.trainer.here():
            return
        if closure:
            self.uses.in_closure = False
            self.borders.join(optimizer, positions)
            if self.open.due.gradients:
                self._read(positions)
        self._measuring.after_update(self.open, id(optimizer))
        self._stepped(optimizer, positions, in_backward=in_backward)
        if in_backward:
            self._moved_in_backward += positions
        else:
            self.borders.end()

    def mark(self) -> None:
        """The user closes a step by hand; nothing happens when nothing happened."""
        open_, everything = self.open, range(len(self._parameters.tensors))
        # What was delivered or clipped after an optimizer's step makes no other step.
        before = bool(self.borders.pieces) or (self._schedule.step > 0 and not self.by_hand)
        again = before and not (open_.stepped or open_.parts or open_.logged or self._ledger.alive)
        self.by_hand = self.borders.by_hand = True
        self._logged.of(open_)
        happened = open_ or open_.logged or self._ledger.alive or self._batches.waiting
        if happened and not again:
            if not open_.stepped:
                if open_.due.gradients and not any(t == "gradients" for t, _ in open_.tables):
                    self._read(everything)
                self._measuring.after_update(open_, -1)
                self._use(everything, by_hand=True)
                open_.batches += self._batches.take(everything=not open_.parts)
                open_.ended = time.time()
            self.borders.end(complete=True)
        elif self.borders.pieces:
            self.borders.close()
            self.borders.begin()

    def finish(self) -> None:
        """Seals what is still open at the end of the trace, if an optimizer has stepped in it."""
        if self.trainer.here():
            self.uses.settle()
        self._logged.of_last()
        self.borders.close()
        rest = self.uses.rest()
        if rest:
            self._handoff.put(Leftovers(rest, self._sealing.readable))
        self._measuring.forget()
        self._batches.clear()
        self._parameters.refresh()  # lets go of those that were replaced last
        self._ledger.clear()

    # -- what gradients were used for ---

    def _stepped(
        self, optimizer: Optimizer, positions: Sequence[int], *, in_backward: bool = False
    ) -> None:
        self._use(positions, in_backward=in_backward)
        for group in optimizer.param_groups:
            lr = group.get("lr", float("nan"))
            self.open.lr.append(pending(lr.detach().clone() if isinstance(lr, Tensor) else lr))
        self.open.stepped.append(weakref.ref(optimizer))
        self.open.ended = time.time()

    def _use(
        self, positions: Sequence[int], *, in_backward: bool = False, by_hand: bool = False
    ) -> None:
        led = self.uses.use(positions, made=by_hand)
        self._losses.used()
        silent = in_backward or self.by_hand or self.open.parts or self.open.skipped
        if not (led or silent):
            self._losses.none()

    def moved_unseen(self) -> bool:
        """Whether parameters have moved since the start without anything that moves them."""
        if self.backwards or self._schedule.step or self.open:
            return False
        first = self._first()
        return first is not None and first._version != self._first_version

    @property
    def discarded(self) -> int:
        """How often gradients were thrown away."""
        return self.uses.discarded
