"""The training thread's side of a trace: what taps report becomes one sealed step after another.

Taps call the methods here with what they saw; the collector reads gradients, weights and updates
at the right moments and hands each finished step over. It never waits and never reads a value.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from gradtrace.collect.optimizers import Owners, Rounds
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import Batch, ClipCall, LateLog, OpenStep, RawStep
from gradtrace.measure.flat import local
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.rows import Positions
from gradtrace.measure.updates import Snapshot
from gradtrace.sampling import Due, Sampling

MOST_WAITING = 64 << 20
"""Bytes that may wait for the background thread before histograms are left out."""


def _unguarded(source: str, function: Callable[..., None]) -> Callable[..., None]:
    return function


class Collector:
    """One trace's open step. All methods run in the training thread unless they say otherwise.

    `overhead` tells the seconds spent so far, `note` is told what could not be observed, `guarded`
    holds back the errors of what shall cost nothing else.
    """

    def __init__(
        self,
        parameters: Parameters,
        sampling: Sampling,
        handoff: Handoff[RawStep | LateLog],
        *,
        rank: int,
        overhead: Callable[[], float],
        note: Callable[[str, str], None],
        guarded: Callable[[str, Callable[..., None]], Callable[..., None]] = _unguarded,
    ) -> None:
        self._parameters = parameters
        self._sampling = sampling
        self._handoff = handoff
        self._rank = rank
        self._overhead = overhead
        self._note = note
        self._spent = overhead()
        # What they cannot measure shall cost nothing but themselves.
        self._count = guarded("the histograms", self._count_now)
        self._reader = GradientReader(parameters)
        self._rounds = Rounds()
        self._owners = Owners(parameters)
        self._step = 0
        self._waiting: OpenStep | None = None
        self._snapshots: dict[int, Snapshot] = {}
        self._manual = False
        self._changes_unannounced = False
        self._stepped_in_backward = False
        # A clip announces that gradients change; until the next backward no change is news.
        self._clipped = False
        self._clips_values = False
        self._before_values: list[Tensor | None] | None = None
        # Gradients that a backward wrote and no step has used.
        self._written: set[int] = set()
        self._scaler_steps = 0
        self._shown: tuple[bytes, Positions] = (b"", np.empty(0, dtype=np.intp))
        self._on_open: list[Callable[[Due], None]] = []
        self.module_names: list[str] = []
        self._modules: tuple[str, ...] = ()
        self.burst_until = -1
        self.backwards = self.others = 0
        """Backwards that reached watched parameters, and those that did not."""
        self._readable = all(p.device.type != "meta" for p in parameters.tensors)
        self._open_part(0)

    # -- the open step ---

    def on_open(self, callback: Callable[[Due], None]) -> None:
        """Has `callback` told what each step will measure, from the present one on."""
        self._on_open.append(callback)
        callback(self.open.due)

    def _open_part(self, step: int) -> None:
        due = self._sampling.due(step, self.burst_until)
        if self._waiting is not None and self._waiting.due.histograms:
            # The part may be of the step before, and a step has all of its histograms or none.
            due = due._replace(gradients=True, histograms=True)
        self.open = OpenStep(due)
        self.activations = self._parameters.accumulator()
        self.output_gradients = self._parameters.accumulator()
        self._loose = self._parameters.accumulator()
        for callback in self._on_open:
            callback(self.open.due)

    def burst(self, steps: int) -> None:
        """Has the next `steps` steps measure everything. Background thread."""
        self.burst_until = max(self.burst_until, self._step + steps + 1)

    @property
    def _eager(self) -> bool:
        # The first steps find out whether the loop changes gradients with code of its own.
        return (
            self._changes_unannounced or self._manual or self._step < max(2, self._sampling.first)
        ) and self.open.due.gradients

    # -- batches, losses, values -------------------------------------------------------------------

    def batch(self, batch: Batch) -> None:
        """A batch was delivered to the loop."""
        self.open.batches.append(batch)

    def log(self, values: Mapping[str, float | Tensor]) -> None:
        """Values the user logs: they belong to the step that is open, or has just ended."""
        if self._waiting is not None and not self.open:
            self._waiting.logged |= values
        elif self.open or self.open.batches or self._step == 0:
            self.open.logged |= values
        else:
            tensors = [v for v in values.values() if isinstance(v, Tensor)]
            self._handoff.put(LateLog.of(values), tensors)

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
        self._clipped = False
        self._written.update(written)
        if loss is not None:
            self.open.losses.append(loss)
        if scale is not None:
            self.open.scale = scale
            self._reader.scaled(written)
        if self._stepped_in_backward:
            self._stepped_in_backward = False
            self._end_part(complete=True)
            return
        if self._eager:
            self._read_gradients(written)
        if self._manual and self.open.due.updates:
            self._before_update(-1, written)

    # -- clipping ---

    def before_clip(self, parameters: Iterable[object]) -> tuple[int, ...]:
        """A clipping call begins on these parameters; the watched ones among them, by position."""
        given = list(parameters)
        positions = self._parameters.positions(given)
        self._remark(given, positions)
        if positions and self.open.due.gradients:
            if not self._clipped:
                self._watch_changes(positions)
            self._read_gradients(positions)
        if self._clips_values and self.open.due.updates:
            self._before_values = self._parameters.copy_gradients(positions)
        return positions

    def _remark(self, given: Sequence[object], positions: Sequence[int]) -> None:
        """Notes what is odd about a clipping call that begins."""
        remarks = self.open.remarks
        tensors = self._parameters.tensors
        if not given or (positions and all(tensors[i].grad is None for i in positions)):
            # An iterator that was used up before is an empty list by now.
            remarks.add("no gradients")
            return
        if positions and self._step and self._written.isdisjoint(positions):
            remarks.add("after the step")
        if self._reader.is_scaled(positions):
            remarks.add("still scaled")
        mine = set(positions)
        if any(not call.inferred and mine.intersection(call.positions) for call in self.open.clips):
            remarks.add("twice")

    def after_clip(self, call: ClipCall) -> None:
        """A clipping call returned."""
        if call.kind == "value":
            self._clips_values = True
            if self.open.due.gradients:
                call.after, _ = self._reader.read_again(
                    call.positions, full=False, scale=self.open.scale
                )
            if self._before_values is not None:
                call.cosine = self._parameters.cosine(call.positions, self._before_values)
                self._before_values = None
        self.open.clips.append(call)
        self._clipped = True

    def _watch_changes(self, positions: Sequence[int]) -> None:
        """Looks for a change of gradients that nobody announced."""
        touched = self._reader.touched(positions)
        if not touched:
            return
        if self._reader.is_fresh(touched):
            after, present = self._reader.read_again(positions, full=False, scale=self.open.scale)
            self.open.clips.append(ClipCall("custom", tuple(present), after=after, inferred=True))
        else:
            self._note(
                "clipping",
                "gradients were changed between backward and the optimizer step by code other "
                "than torch.nn.utils.clip_grad_*; this step shows them after that change, later "
                "steps are read right after each backward",
            )
        self._changes_unannounced = True
        self._reader.settle()

    # -- AMP ---------------------------------------------------------------------------------------

    def unscaled(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """`GradScaler.unscale_` returned: the gradients are what they are, bad values included."""
        positions = self._owners.positions_of(optimizer)
        if not positions:
            return
        self._reader.unscaled(positions)
        self.open.scale = scale
        if self.open.due.gradients:
            self._read_gradients(positions)
        self._reader.settle()

    def before_scaler_step(self, optimizer: Optimizer, scale: Tensor | None) -> bool:
        """`GradScaler.step` begins; whether the optimizer is one of ours."""
        positions = self._owners.positions_of(optimizer)
        if not positions:
            return False
        self.open.scale = scale
        if self.open.due.gradients and not self._clipped:
            self._watch_changes(positions)
        self._scaler_steps += 1
        return True

    def after_scaler_step(self, optimizer: Optimizer, *, skipped: bool) -> None:
        """`GradScaler.step` returned; `skipped` if it never called the optimizer."""
        self._scaler_steps -= 1
        if skipped:
            self._join_round(optimizer)
            self.open.skipped = True
            self._stepped(optimizer)
            self._end_part()

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
                self._read_loose(positions)
            elif not closure:
                if not self._scaler_steps and not self._clipped:
                    self._watch_changes(positions)
                self._read_gradients(positions + self._owners.nobodys())
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):
            self.open.found_inf.append(found_inf.detach().clone())
        if due.updates and not in_backward:
            self._before_update(id(optimizer), positions)
        return True

    def after_step(self, optimizer: Optimizer, *, closure: bool, in_backward: bool) -> None:
        """The outermost `step` of an optimizer returned."""
        if not self._owners.positions_of(optimizer):
            return
        if closure and self.open.due.gradients:
            self._read_gradients(self._owners.positions_of(optimizer))
        self._after_update(id(optimizer))
        self._written.difference_update(self._owners.positions_of(optimizer))
        self._stepped(optimizer)
        if in_backward:
            self._stepped_in_backward = True
        else:
            self._end_part()

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
                self._read_gradients(range(len(self._parameters.tensors)))
            self._after_update(-1)
            self.open.ended = time.time()
        self._end_part(complete=True)

    def finish(self) -> None:
        """Seals what is still open at the end of the trace, if an optimizer has stepped in it."""
        if self._waiting is not None:
            self._seal(self._waiting)
            self._waiting = None
        self._snapshots.clear()

    def _join_round(self, optimizer: Optimizer) -> None:
        waiting = self._waiting
        if waiting is None:
            return
        self._waiting = None
        if self._rounds.has_stepped(optimizer, waiting.stepped):
            self._seal(waiting)
        else:
            waiting.absorb(self.open)
            self.open = waiting

    def _stepped(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            lr = group.get("lr", float("nan"))
            self.open.lr.append(lr.detach().clone() if isinstance(lr, Tensor) else lr)
        self.open.stepped.append(weakref.ref(optimizer))
        self.open.ended = time.time()

    def _end_part(self, *, complete: bool = False) -> None:
        part = self.open
        for table, accumulator in (
            ("activations", self.activations),
            ("output_gradients", self.output_gradients),
            ("gradients", self._loose),
        ):
            if accumulator:
                part.tables.append((table, [accumulator.reading()]))
        self._reader.next_step()
        if complete or self._rounds.complete(part.stepped) or self._moved_all(part):
            self._seal(part)
            self._open_part(self._step)
        else:
            self._waiting = part
            self._open_part(self._step + 1)

    def _moved_all(self, part: OpenStep) -> bool:
        """Whether, in the first round, the optimizers that stepped hold all trained parameters."""
        if self._rounds.known:
            return False
        moved: set[int] = set()
        for ref in part.stepped:
            optimizer = ref()
            if optimizer is not None:
                moved.update(self._owners.positions_of(optimizer))
        return moved.issuperset(self._take_part().tolist())

    def _seal(self, part: OpenStep) -> None:
        self._rounds.closed(part.stepped)
        spent = self._overhead()
        facts = {
            "names": {"gradients": self._parameters.names, "modules": self._module_tuple()},
            "shown": self._take_part(),
            "readable": self._readable,
            "overhead": spent - self._spent,
            "rank": self._rank,
        }
        raw, tensors = part.sealed(self._step, **facts)
        if part.histograms and not self._handoff.fits(tensors):
            self._leave_out()
            part.histograms = []
            raw, tensors = part.sealed(self._step, **facts)
        self._spent = spent
        self._step += 1
        self._handoff.put(raw, tensors)

    def _module_tuple(self) -> tuple[str, ...]:
        if len(self._modules) != len(self.module_names):
            self._modules = tuple(self.module_names)
        return self._modules

    def _take_part(self) -> Positions:
        """The positions of parameters that are trained: a row each, also while unmeasured."""
        mask = bytes([p.requires_grad or p.grad is not None for p in self._parameters.tensors])
        if mask != self._shown[0]:
            self._shown = (mask, np.flatnonzero(np.frombuffer(mask, dtype=np.uint8)))
        return self._shown[1]

    # -- measuring ---

    def _read_gradients(self, positions: Sequence[int]) -> None:
        scale = self.open.scale
        readings, read = self._reader.read(positions, full=self.open.due.full, scale=scale)
        if readings:
            self.open.tables.append(("gradients", readings))
        if read and self._is_counting():
            self._count(read, scale)

    def _count_now(self, positions: Sequence[int], scale: Tensor | None) -> None:
        self.open.count(positions, self._reader.histograms(positions, scale=scale))

    def _is_counting(self) -> bool:
        """Whether this step has histograms: all of its layers or none.

        They are large, and left out while much waits for the background thread.
        """
        open_ = self.open
        if open_.counting is None and self._waiting is not None:
            open_.counting = self._waiting.counting  # the present part may be of the same step
        if open_.counting is None and open_.due.histograms:
            open_.counting = self._handoff.waiting_bytes < MOST_WAITING
            if not open_.counting:
                self._leave_out()
        return bool(open_.counting)

    def _leave_out(self) -> None:
        self._note(
            "histograms",
            "some steps are without histograms, for too many of them were waiting to be stored: "
            f"Sampling(histograms={self._sampling.histograms}) asks for one each "
            f"{self._sampling.histograms} steps; ask for fewer",
        )

    def _read_loose(self, positions: Sequence[int]) -> None:
        with torch.no_grad():
            for i in positions:
                grad = self._parameters.tensors[i].grad
                if grad is not None:
                    self._loose.add(i, grad)
        if self._is_counting():
            self._count(positions, None)

    def _before_update(self, key: int, positions: Sequence[int]) -> None:
        weights = [local(self._parameters.tensors[i].detach()) for i in positions]
        readings = self._parameters.read(positions, weights, full=True)
        self.open.tables.append(("weights", readings))
        self._snapshots[key] = Snapshot(self._parameters, positions)

    def _after_update(self, key: int) -> None:
        snapshot = self._snapshots.pop(key, None)
        if snapshot is not None:
            self.open.tables.append(("updates", snapshot.read()))
