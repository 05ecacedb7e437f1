"""The training thread's side of a trace: what taps report becomes one step after another.

Taps call the methods here with what they saw; the collector has gradients, weights and updates read
at the right moments and hands each finished step over. It never waits and never reads a value.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from gradtrace.collect.batches import Batches
from gradtrace.collect.clipping import Clipping
from gradtrace.collect.discards import Discards
from gradtrace.collect.ledger import MOST, Changes, Ledger
from gradtrace.collect.measuring import Guarded, Measuring, Note
from gradtrace.collect.optimizers import Owners
from gradtrace.collect.rounds import Piece, Rounds
from gradtrace.collect.schedule import Schedule
from gradtrace.collect.trainer import Trainer
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import Batch, ClipCall, Handed, LateLog, Leftovers, Part, Step
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Number, Pending, pending
from gradtrace.measure.rows import Positions
from gradtrace.sampling import Due

Token = bool
"""What `before_backward` returns: whether `after_backward` has something to do."""


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
        self._rank = rank
        self._overhead = overhead
        self._spent = overhead()
        self.trainer = Trainer(note)
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
        self._batches = batches
        self._discards = Discards(parameters)
        self._rounds = Rounds(step_after)
        self._owners = Owners(parameters)
        self._pieces: list[Piece] = []
        self.by_hand = False
        """Whether the user closes steps; then nothing else does."""
        self._moved_in_backward: list[int] = []
        self._held: dict[str, Number] = {}
        self._in_closure = False
        self._carried: list[Batch] = []
        self._scaler_steps = 0
        self._part_count = 0
        self._divisor = 1.0
        self._note = note
        # A backward reached other parameters only, and no optimizer has used that yet.
        self._foreign = False
        self._trainable = self._trained_now()
        self._shown: tuple[bytes, Positions] = (b"", np.empty(0, dtype=np.intp))
        self._on_open: list[Callable[[Due], None]] = []
        self.module_names: list[str] = []
        self._modules: tuple[str, ...] = ()
        self.backwards = self.others = 0
        """Backwards that reached watched parameters, and those that did not."""
        self._readable = all(p.device.type != "meta" for p in parameters.tensors)
        self._begin()

    # -- the open step ---

    def on_open(self, callback: Callable[[Due], None]) -> None:
        """Has `callback` told what each step will measure, from the present one on."""
        self._on_open.append(callback)
        callback(self.open.due)

    def _begin(self) -> None:
        self._own = due = self._schedule.due(self._schedule.step + len(self._pieces))
        for piece in self._pieces:
            # The open piece may be of their step, and what is due is measured in all of a step.
            due = Due(*(one or other for one, other in zip(due, piece.own, strict=True)))
        self.open = Step(due)
        self._accumulate()

    def _accumulate(self) -> None:
        """Module outputs, and gradients of optimizers inside the backward, from here on."""
        self.activations = self._parameters.accumulator()
        self.output_gradients = self._parameters.accumulator()
        self._loose = self._parameters.accumulator()
        for callback in self._on_open:
            callback(self.open.due)

    @property
    def _before(self) -> Step | None:
        """The piece before the open one, which may be of the same step."""
        return self._pieces[-1].step if self._pieces else None

    def _read(self, positions: Iterable[int]) -> None:
        self._measuring.gradients(self.open, tuple(positions), self._before)

    @property
    def _eager(self) -> bool:
        # The first steps find out whether the loop changes gradients with code of its own.
        # Within a closure an optimizer of optimizers may use them at once.
        unusual = self._clipping.changes_unannounced or self.by_hand or self._in_closure
        return (unusual or self._schedule.beginning) and self.open.due.gradients

    # -- batches, losses, values ---

    def delivered(self) -> None:
        """A batch was delivered to the loop."""
        self._log_held()

    def log(self, values: Mapping[str, float | Tensor]) -> None:
        """Values the user logs: they belong to the step that is open, or has just ended."""
        if self._pieces and not self.open and not self._ledger.alive:
            logged = self._pieces[-1].step.logged
        elif self.open or self._batches.waiting or self._ledger.alive or self._schedule.step == 0:
            logged = self.open.logged
        elif self.by_hand:
            logged = self._held  # of the step that ended, or of one that nothing else will make
        else:
            self._handoff.put(LateLog.of(values))
            return
        logged |= {name: pending(value) for name, value in values.items()}

    def _log_held(self) -> None:
        """Something has happened since: what was logged belongs to the step that had ended."""
        if self._held:
            self._handoff.put(LateLog(self._held))
            self._held = {}

    def divide(self, by: float) -> None:
        """Losses that follow were divided by so much before their backward."""
        self._divisor = by

    def zeroed(self, owner: Optimizer | nn.Module) -> None:
        """`owner.zero_grad()` returned."""
        if not self.trainer.here():
            return
        if isinstance(owner, Optimizer):
            positions = self._owners.positions_of(owner)
        else:
            positions = self._parameters.positions(owner.parameters())
        self._ledger.zeroed(positions)
        if self._ledger.alive and not self._in_closure:
            # Gradients that nothing has used: the forward that led to them has been measured, the
            # next one has not.
            self._settle()
            if not self._ledger.alive:
                self._accumulate()

    def before_backward(self) -> Token:
        """A backward begins; the result is for `after_backward`."""
        if not self.trainer.here():
            return False
        self._log_held()
        self._settle()
        return True

    def _settle(self) -> None:
        """Takes note of what has happened to gradients since the last look."""
        self._take(self._ledger.settle())

    def _take(self, changes: Changes) -> None:
        if changes.changed:
            self._reader.stale(changes.changed)
            self._clipping.unclipped(changes.changed)
        if changes.dropped:
            self._drop(changes.dropped, changes.lost)
            self._reader.gone(changes.dropped)
            self._clipping.unclipped(changes.dropped)

    def _look(self, positions: Sequence[int]) -> None:
        """Takes note of the same before a step, which will use the gradients at `positions`."""
        changes = self._ledger.settle()
        changed, changes.changed = changes.changed, []
        self._take(changes)
        self._clipping.changed(changed)
        if self.open.due.gradients:
            self._clipping.note_changes(self.open, positions)

    def _drop(self, positions: Sequence[int], parts: list[Part]) -> None:
        """Gradients were thrown away, and with them what was read of them or done to them."""
        for piece in self._pieces:
            piece.step.forget(positions)
        if self._ledger.alive:
            self.open.forget(positions)
            measured = None
        else:
            measured = self.open.take_measurements()
            if not self._reader.is_fresh(positions):
                measured.tables = []  # a later backward has added to what was read
            if not self._clipping.has_clipped(positions):
                measured.clips = []
            measured.divisor = None if self.open.scale is None else Pending(self.open.scale)
        if self._in_closure:
            # An evaluation that the optimizer has used before this one; the batch is the same.
            self._carried += [batch for part in parts for batch in part.batches]
        elif parts:
            self._discards.add(parts, measured)
            if self._discards.many:
                self._accumulate()  # what forwards that came to nothing have left does not pile up

    def after_backward(self, token: Token, loss: Tensor | None, scale: Tensor | None) -> bool:
        """A backward ended; whether it reached watched parameters.

        `loss` is a copy of the unscaled loss, `scale` what multiplied it.
        """
        if not token:
            return False
        if self._foreign and loss is not None:
            loss = None
            self._note(
                "loss",
                "a backward that reached no parameter of this model ran before one that did, and "
                "nothing has used it yet: which of them started from the loss cannot be told, so "
                "such steps have none; say what it is with trace.log(loss=...)",
            )
        part = Part(
            self._part_count, None if loss is None else Pending(loss), divisor=self._divisor
        )
        written = self._ledger.written(part)
        if not written and not self._moved_in_backward and self._parameters.refresh():
            written = self._ledger.found(part)  # they were replaced by new ones
        if not written and not self._moved_in_backward:
            self.others += 1
            self._foreign = True
            return False  # another model's
        self._part_count += 1
        self.backwards += 1
        if self._ledger.overflown:
            self._note(
                "losses",
                f"more than {MOST:,} backwards were added up and no optimizer of these parameters "
                "has stepped: only the newest are remembered; call trace.step() where a step ends",
            )
        part.batches = (*self._carried, *self._batches.take())
        self._carried = []
        self._discards.backward(written)
        self._reader.stale(written)
        self._clipping.unclipped(written)
        if scale is not None:
            self.open.scale = scale
            self._reader.scaled(written)
        if self._moved_in_backward:
            self._after_moving_backward(part)
            return True
        if self._eager:
            self._read(written)
        if self.by_hand and self.open.due.updates:
            self._measuring.before_update(self.open, -1, written)
        return True

    def _after_moving_backward(self, part: Part) -> None:
        """Optimizers have stepped inside the backward; another that uses the rest joins them."""
        self._moved_in_backward = []
        part.used = True
        self.open.parts.append(part)
        self._end()

    # -- clipping ---

    def before_clip(self, parameters: Iterable[object]) -> tuple[int, ...]:
        """A clipping call begins on these parameters; the watched ones among them, by position."""
        given = list(parameters)
        positions = self._parameters.positions(given)
        if not positions or not self.trainer.here():
            if not given:
                self._clipping.remark(self.open, given, positions, first=False)
            return ()
        self._clipping.remark(self.open, given, positions, first=self._schedule.step == 0)
        if self.open.due.gradients:
            self._clipping.watch_changes(self.open, positions)
            if not self._reader.is_fresh(positions):
                # All at once: one call for each parameter would cost each a reading of its own.
                self._read(self._ledger.waiting() or positions)
        self._clipping.before(self.open, positions)
        return positions

    def after_clip(self, call: ClipCall) -> None:
        """A clipping call returned."""
        self._clipping.after(self.open, call)

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
        self._look(positions)
        self._scaler_steps += 1
        return True

    def after_scaler_step(self, optimizer: Optimizer, *, skipped: bool) -> None:
        """`GradScaler.step` returned; `skipped` if it never called the optimizer."""
        self._scaler_steps -= 1
        if skipped:
            positions = self._owners.positions_of(optimizer)
            self._join(optimizer, positions)
            self.open.skipped = True
            self._stepped(optimizer, positions)
            self._end()

    # -- optimizer steps ---

    def before_step(self, optimizer: Optimizer, *, closure: bool, in_backward: bool) -> bool:
        """The outermost `step` of an optimizer begins; whether it is one of ours."""
        positions = self._owners.positions_of(optimizer)
        if not positions:
            if self.trainer.here():
                self._foreign = False
            return False
        if not self.trainer.trains():
            return False
        self._take(self._ledger.grow())
        if not closure:
            self._join(optimizer, positions)
            if not in_backward and not self._scaler_steps:
                self._look(positions)
        self._in_closure = closure
        due = self.open.due
        if due.gradients:
            if in_backward:
                self._measuring.loose(self.open, positions, self._loose, self._before)
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
            self._in_closure = False
            self._join(optimizer, positions)
            if self.open.due.gradients:
                self._read(positions)
        self._measuring.after_update(self.open, id(optimizer))
        self._stepped(optimizer, positions, in_backward=in_backward)
        if in_backward:
            self._moved_in_backward += positions
        else:
            self._end()

    def mark(self) -> None:
        """The user closes a step by hand; nothing happens when nothing happened."""
        open_, everything = self.open, range(len(self._parameters.tensors))
        self.by_hand = True
        open_.logged |= self._held
        self._held = {}
        if open_ or open_.logged or self._ledger.alive or self._batches.waiting:
            if not open_.stepped:
                if open_.due.gradients and not any(t == "gradients" for t, _ in open_.tables):
                    self._read(everything)
                self._measuring.after_update(open_, -1)
                self._use(everything, by_hand=True)
                open_.batches += self._batches.take(everything=not open_.parts)
                open_.ended = time.time()
            self._end(complete=True)
        elif self._pieces:
            self._close()
            self._begin()

    def finish(self) -> None:
        """Seals what is still open at the end of the trace, if an optimizer has stepped in it."""
        if self.trainer.here():
            self._settle()
        self._log_held()
        self._close()
        rest = self._discards.rest()
        if rest:
            self._handoff.put(Leftovers(rest, self._readable))
        self._measuring.forget()
        self._batches.clear()
        self._ledger.clear()

    # -- the borders of steps ---

    def _join(self, optimizer: Optimizer, positions: Sequence[int]) -> None:
        """An optimizer is about to step: in the open step, or in a new one."""
        if not self._pieces:
            return
        shared = {part.number for part in self._ledger.parts(positions)}
        last = self._pieces[-1].step
        if self._rounds.over(optimizer, self._pieces):
            self._close(optimizer)
            self._own = self._schedule.due(self._schedule.step)
            self.open.narrow(self._own)
        elif shared and any(part.number in shared for part in last.parts):
            last.absorb(self.open)  # gradients of the same backward
            self.open = last
            self._own = self._pieces.pop().own

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
        """The gradients at these positions have been used: what led to them is this step's."""
        made = by_hand or self._ledger.made(positions)
        settled = self._discards.settle(self._ledger.use(positions), made=made)
        self._foreign = False
        self.open.used.update(positions)
        silent = in_backward or self.by_hand or self.open.parts or self.open.skipped
        if not (settled.parts or silent):
            self._note(
                "loss",
                "gradients were used that no backward has written since they were used last: "
                "such steps have no loss; say what it is with trace.log(loss=...)",
            )
        self.open.parts += settled.parts
        self.open.lost += settled.lost
        if settled.last is not None and not any(t == "gradients" for t, _ in self.open.tables):
            self.open.put_back(settled.last)
        self._reader.gone(positions)
        self._clipping.unclipped(positions)

    def _end(self, *, complete: bool = False) -> None:
        """A piece of a step ends, and the step with it if nothing more of it is expected."""
        step = self.open
        for table, accumulator in (
            ("activations", self.activations),
            ("output_gradients", self.output_gradients),
            ("gradients", self._loose),
        ):
            if accumulator and step.asks_for(table):
                step.tables.append((table, [accumulator.reading()]))
        self._pieces.append(Piece(step, self._own))
        if complete or (not self.by_hand and self._rounds.complete(self._pieces, self._moved_all)):
            self._close()
        self._begin()

    def _moved_all(self) -> bool:
        """Whether the optimizers of the open pieces hold all parameters that were ever trained."""
        moved: set[int] = set()
        for piece in self._pieces:
            for ref in piece.step.stepped:
                optimizer = ref()
                if optimizer is not None:
                    moved.update(self._owners.positions_of(optimizer))
        self._trainable |= self._trained_now()
        return moved >= self._trainable

    def _trained_now(self) -> set[int]:
        return {i for i, p in enumerate(self._parameters.tensors) if p.requires_grad}

    def _close(self, trigger: Optimizer | None = None) -> None:
        """Seals the open pieces, as one step or as several."""
        pieces, self._pieces = self._pieces, []
        for step in self._rounds.steps(pieces, trigger):
            self._seal(step)

    def _seal(self, step: Step) -> None:
        """Writes down what only the end of a step tells, and hands it over."""
        spent = self._overhead()
        step.batches += [batch for part in step.parts for batch in part.batches]
        step.batches.sort(key=lambda batch: batch.ordinal)
        if step.used:
            nobodys = self._owners.nobodys()
            count = len(self._parameters.tensors)
            if len(step.used) + len(nobodys) < count:
                # Read, because a backward wrote them, but another optimizer's to use.
                step.forget(set(range(count)).difference(nobodys))
        step.number = self._schedule.step
        step.rank = self._rank
        step.ended = step.ended or time.time()
        step.names = self._parameters.names
        step.modules = self._module_tuple()
        step.shown = self._trained()
        step.readable = self._readable
        step.overhead = spent - self._spent
        if step.scale is not None:
            step.divisor, step.scale = Pending(step.scale), None
        if step.histograms and not self._handoff.fits(step):
            self._measuring.left_out()
            step.histograms = []
        self._spent = spent
        self._schedule.step += 1
        self._handoff.put(step)

    @property
    def discarded(self) -> int:
        """How many backwards' gradients were thrown away."""
        return self._discards.count

    def _module_tuple(self) -> tuple[str, ...]:
        if len(self._modules) != len(self.module_names):
            self._modules = tuple(self.module_names)
        return self._modules

    def _trained(self) -> Positions:
        """The positions of parameters that are trained: a row each, also while unmeasured."""
        mask = bytes([p.requires_grad or p.grad is not None for p in self._parameters.tensors])
        if mask != self._shown[0]:
            self._shown = (mask, np.flatnonzero(np.frombuffer(mask, dtype=np.uint8)))
        return self._shown[1]
