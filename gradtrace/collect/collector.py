"""The training thread's side of a trace: what taps report becomes one step after another.

Taps call the methods here with what they saw; the collector has gradients, weights and updates read
at the right moments and hands each finished step over. It never waits and never reads a value.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from gradtrace.collect.clipping import Clipping
from gradtrace.collect.measuring import Guarded, Measuring, Note
from gradtrace.collect.optimizers import Owners, Rounds
from gradtrace.collect.schedule import Schedule
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import Batch, ClipCall, LateLog, Step
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Pending, pending
from gradtrace.measure.rows import Positions
from gradtrace.sampling import Due


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
        handoff: Handoff[Step | LateLog],
        *,
        rank: int,
        overhead: Callable[[], float],
        note: Note,
        guarded: Guarded = _unguarded,
    ) -> None:
        self._parameters = parameters
        self._schedule = schedule
        self._handoff = handoff
        self._rank = rank
        self._overhead = overhead
        self._spent = overhead()
        self._reader = GradientReader(parameters)
        self._clipping = Clipping(parameters, self._reader, note)
        self._measuring = Measuring(
            parameters,
            self._reader,
            handoff,
            every=schedule.sampling.histograms,
            note=note,
            guarded=guarded,
        )
        self._rounds = Rounds()
        self._owners = Owners(parameters)
        self._waiting: Step | None = None
        self._manual = False
        self._stepped_in_backward = False
        self._scaler_steps = 0
        self._shown: tuple[bytes, Positions] = (b"", np.empty(0, dtype=np.intp))
        self._on_open: list[Callable[[Due], None]] = []
        self.module_names: list[str] = []
        self._modules: tuple[str, ...] = ()
        self.backwards = self.others = 0
        """Backwards that reached watched parameters, and those that did not."""
        self._readable = all(p.device.type != "meta" for p in parameters.tensors)
        self._begin(0)

    # -- the open step ---

    def on_open(self, callback: Callable[[Due], None]) -> None:
        """Has `callback` told what each step will measure, from the present one on."""
        self._on_open.append(callback)
        callback(self.open.due)

    def _begin(self, step: int) -> None:
        due = self._due = self._schedule.due(step)
        if self._waiting is not None:
            # The piece may be of the step before, and what is due is measured in all of a step.
            due = Due(*(one or other for one, other in zip(due, self._waiting.due, strict=True)))
        self.open = Step(due)
        self.activations = self._parameters.accumulator()
        self.output_gradients = self._parameters.accumulator()
        self._loose = self._parameters.accumulator()
        for callback in self._on_open:
            callback(due)

    def _read(self, positions: Iterable[int]) -> None:
        self._measuring.gradients(self.open, tuple(positions), self._waiting)

    @property
    def _eager(self) -> bool:
        # The first steps find out whether the loop changes gradients with code of its own.
        unusual = self._clipping.changes_unannounced or self._manual
        return (unusual or self._schedule.beginning) and self.open.due.gradients

    # -- batches, losses, values ---

    def batch(self, batch: Batch) -> None:
        """A batch was delivered to the loop."""
        self.open.batches.append(batch)

    def log(self, values: Mapping[str, float | Tensor]) -> None:
        """Values the user logs: they belong to the step that is open, or has just ended."""
        if self._waiting is not None and not self.open:
            logged = self._waiting.logged
        elif self.open or self.open.batches or self._schedule.step == 0:
            logged = self.open.logged
        else:
            self._handoff.put(LateLog.of(values))
            return
        logged |= {name: pending(value) for name, value in values.items()}

    def before_backward(self) -> list[tuple[int, int] | None]:
        """A backward begins; the result is for `after_backward`."""
        return self._reader.before_backward()

    def after_backward(
        self, before: list[tuple[int, int] | None], loss: Tensor | None, scale: Tensor | None
    ) -> None:
        """A backward ended. `loss` is a copy of the unscaled loss, `scale` what multiplied it."""
        written = self._reader.after_backward(before)
        if not written and not self._stepped_in_backward:
            self.others += 1
            return  # another model's
        self.backwards += 1
        self._clipping.written(written)
        self.open.add_part(loss)
        if scale is not None:
            self.open.scale = scale
            self._reader.scaled(written)
        if self._stepped_in_backward:
            self._stepped_in_backward = False
            self._end(complete=True)
            return
        if self._eager:
            self._read(written)
        if self._manual and self.open.due.updates:
            self._measuring.before_update(self.open, -1, written)

    # -- clipping ---

    def before_clip(self, parameters: Iterable[object]) -> tuple[int, ...]:
        """A clipping call begins on these parameters; the watched ones among them, by position."""
        given = list(parameters)
        positions = self._parameters.positions(given)
        self._clipping.remark(self.open, given, positions, first=self._schedule.step == 0)
        if positions and self.open.due.gradients:
            self._clipping.watch_changes(self.open, positions)
            self._read(positions)
        self._clipping.before(self.open, positions)
        return positions

    def after_clip(self, call: ClipCall) -> None:
        """A clipping call returned."""
        self._clipping.after(self.open, call)

    # -- AMP ---

    def unscaled(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """`GradScaler.unscale_` returned: the gradients are what they are, bad values included."""
        positions = self._owners.positions_of(optimizer)
        if not positions:
            return
        self._reader.unscaled(positions)
        self.open.scale = scale
        if self.open.due.gradients:
            self._read(positions)
        self._reader.settle()

    def before_scaler_step(self, optimizer: Optimizer, scale: Tensor | None) -> bool:
        """`GradScaler.step` begins; whether the optimizer is one of ours."""
        positions = self._owners.positions_of(optimizer)
        if not positions:
            return False
        self.open.scale = scale
        if self.open.due.gradients:
            self._clipping.watch_changes(self.open, positions)
        self._scaler_steps += 1
        return True

    def after_scaler_step(self, optimizer: Optimizer, *, skipped: bool) -> None:
        """`GradScaler.step` returned; `skipped` if it never called the optimizer."""
        self._scaler_steps -= 1
        if skipped:
            self._join_round(optimizer)
            self.open.skipped = True
            self._stepped(optimizer)
            self._end()

    # -- optimizer steps ---

    def before_step(self, optimizer: Optimizer, *, closure: bool, in_backward: bool) -> bool:
        """The outermost `step` of an optimizer begins; whether it is one of ours."""
        positions = self._owners.positions_of(optimizer)
        if not positions:
            return False
        self._join_round(optimizer)
        due = self.open.due
        if due.gradients:
            if in_backward:
                self._measuring.loose(self.open, positions, self._loose, self._waiting)
            elif not closure:
                if not self._scaler_steps:
                    self._clipping.watch_changes(self.open, positions)
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
        if not positions:
            return
        if closure and self.open.due.gradients:
            self._read(positions)
        self._measuring.after_update(self.open, id(optimizer))
        self._clipping.used(positions)
        self._stepped(optimizer)
        if in_backward:
            self._stepped_in_backward = True
        else:
            self._end()

    def mark(self) -> None:
        """The user closes a step by hand; nothing happens when nothing happened."""
        if self._waiting is not None:
            self._waiting.absorb(self.open)
            self.open, self._waiting = self._waiting, None
        if not self.open:
            return
        if not self.open.stepped:
            self._manual = True
            if self.open.due.gradients and not any(t == "gradients" for t, _ in self.open.tables):
                self._read(range(len(self._parameters.tensors)))
            self._measuring.after_update(self.open, -1)
            self.open.ended = time.time()
        self._end(complete=True)

    def finish(self) -> None:
        """Seals what is still open at the end of the trace, if an optimizer has stepped in it."""
        if self._waiting is not None:
            self._seal(self._waiting)
            self._waiting = None
        self._measuring.forget()

    def _join_round(self, optimizer: Optimizer) -> None:
        waiting = self._waiting
        if waiting is None:
            return
        self._waiting = None
        if self._rounds.has_stepped(optimizer, waiting.stepped):
            self._seal(waiting)
            self.open.narrow(self._due)
        else:
            waiting.absorb(self.open)
            self.open = waiting

    def _stepped(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            lr = group.get("lr", float("nan"))
            self.open.lr.append(pending(lr.detach().clone() if isinstance(lr, Tensor) else lr))
        self.open.stepped.append(weakref.ref(optimizer))
        self.open.ended = time.time()

    def _end(self, *, complete: bool = False) -> None:
        """A piece of a step ends, and the step with it if nothing more of it is expected."""
        piece = self.open
        for table, accumulator in (
            ("activations", self.activations),
            ("output_gradients", self.output_gradients),
            ("gradients", self._loose),
        ):
            if accumulator and piece.asks_for(table):
                piece.tables.append((table, [accumulator.reading()]))
        self._reader.next_step()
        if complete or self._rounds.complete(piece.stepped) or self._moved_all(piece):
            self._seal(piece)
            self._begin(self._schedule.step)
        else:
            self._waiting = piece
            self._begin(self._schedule.step + 1)

    def _moved_all(self, piece: Step) -> bool:
        """Whether, in the first round, the optimizers that stepped hold all trained parameters."""
        if self._rounds.known:
            return False
        moved: set[int] = set()
        for ref in piece.stepped:
            optimizer = ref()
            if optimizer is not None:
                moved.update(self._owners.positions_of(optimizer))
        return moved.issuperset(self._trained().tolist())

    def _seal(self, step: Step) -> None:
        """Writes down what only the end of a step tells, and hands it over."""
        self._rounds.closed(step.stepped)
        spent = self._overhead()
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
