"""What only the end of a step tells, written down before the step is handed over."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from gradtrace.collect.measuring import Measuring
from gradtrace.collect.optimizers import Owners
from gradtrace.collect.outputs import Outputs
from gradtrace.collect.schedule import Schedule
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import Handed, Step
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Pending
from gradtrace.measure.rows import Positions


class Sealing:
    """Numbers steps and hands them over. Training thread.

    `overhead` tells the seconds that the trace has spent there so far.
    """

    def __init__(
        self,
        parameters: Parameters,
        schedule: Schedule,
        handoff: Handoff[Handed],
        *,
        owners: Owners,
        outputs: Outputs,
        measuring: Measuring,
        rank: int,
        overhead: Callable[[], float],
    ) -> None:
        self._parameters = parameters
        self._schedule = schedule
        self._handoff = handoff
        self._owners = owners
        self._outputs = outputs
        self._measuring = measuring
        self._rank = rank
        self._overhead = overhead
        self._spent = overhead()
        self._shown: tuple[bytes, Positions] = (b"", np.empty(0, dtype=np.intp))
        self.readable = all(p.device.type != "meta" for p in parameters.tensors)
        """False on the meta device: there are no values."""

    def seal(self, step: Step) -> None:
        """The step has ended."""
        spent = self._overhead()
        step.batches += [batch for part in step.parts for batch in part.batches]
        step.batches.sort(key=lambda batch: batch.ordinal)
        self._forget_unused(step)
        step.number = self._schedule.step
        step.rank = self._rank
        step.ended = step.ended or time.time()
        step.names = self._parameters.names
        step.modules = self._outputs.modules()
        step.shown = self._trained()
        step.readable = self.readable
        step.overhead = spent - self._spent
        if step.scale is not None:
            step.divisor, step.scale = Pending(step.scale), None
        if step.histograms and not self._handoff.fits(step):
            self._measuring.left_out()
            step.histograms = []
        self._spent = spent
        self._schedule.step += 1
        self._handoff.put(step)

    def _forget_unused(self, step: Step) -> None:
        """Gradients that were read, for a backward wrote them, but are another optimizer's."""
        count = len(self._parameters.tensors)
        if step.used and len(step.used) < count:
            nobodys = self._owners.nobodys()
            if len(step.used) + len(nobodys) < count:
                step.forget(set(range(count)).difference(nobodys))

    def _trained(self) -> Positions:
        """The positions of parameters that are trained: a row each, also while unmeasured."""
        mask = bytes([p.requires_grad or p.grad is not None for p in self._parameters.tensors])
        if mask != self._shown[0]:
            self._shown = (mask, np.flatnonzero(np.frombuffer(mask, dtype=np.uint8)))
        return self._shown[1]
