"""What an open step measures: gradients, their histograms, weights and updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gradtrace.handover.step import Step
from gradtrace.measure.chunks import Accumulator
from gradtrace.measure.flat import local
from gradtrace.measure.gradients import GradientReader
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.updates import Snapshot

MOST_WAITING = 64 << 20
"""Bytes that may wait for the background thread before histograms are left out."""

Note = Callable[[str, str], None]
Guarded = Callable[[str, Callable[..., None]], Callable[..., None]]


class Lane(Protocol):
    """The way to the background thread."""

    @property
    def waiting_bytes(self) -> int:
        """What the values that wait in it take."""


class Measuring:
    """Starts measurements and puts them into steps. Training thread; waits for no device.

    `guarded` holds back the errors of what shall cost nothing but itself.
    """

    def __init__(
        self,
        parameters: Parameters,
        reader: GradientReader,
        lane: Lane,
        *,
        every: int,
        note: Note,
        guarded: Guarded,
    ) -> None:
        self._parameters = parameters
        self._reader = reader
        self._lane = lane
        self._every = every
        self._note = note
        self._count = guarded("the histograms", self._count_now)
        self._told_partial = False
        self._snapshots: dict[int, Snapshot] = {}

    def gradients(self, step: Step, positions: Sequence[int], waiting: Step | None) -> None:
        """Reads those of the gradients that were not read yet; `waiting` is `step`'s beginning."""
        readings, read = self._reader.read(positions, full=step.due.full, scale=step.scale)
        if readings:
            step.read(read, readings)
        if self._parameters.partial and not self._told_partial:
            self._told_partial = True
            self._note(
                "gradients",
                "gradients of some parameters are summands whose sum over ranks nobody has asked "
                "for yet (DTensors with a Partial placement): they have no numbers, and are not in "
                "the gradient norm",
            )
        if read and self._is_counting(step, waiting):
            self._count(step, read, step.scale)

    def loose(
        self, step: Step, positions: Sequence[int], into: Accumulator, waiting: Step | None
    ) -> None:
        """Reads gradients one by one, for an optimizer that steps inside the backward."""
        with torch.no_grad():
            for i in positions:
                grad = self._parameters.tensors[i].grad
                if grad is not None:
                    into.add(i, grad)
        if self._is_counting(step, waiting):
            self._count(step, positions, None)

    def _count_now(self, step: Step, positions: Sequence[int], scale: Tensor | None) -> None:
        step.count(positions, self._reader.histograms(positions, scale=scale))

    def _is_counting(self, step: Step, waiting: Step | None) -> bool:
        """Whether this step has histograms: all of its layers or none.

        They are large, and left out while much waits for the background thread.
        """
        if step.counting is None and waiting is not None:
            step.counting = waiting.counting  # the present piece may be of the same step
        if step.counting is None and step.due.histograms:
            step.counting = self._lane.waiting_bytes < MOST_WAITING
            if not step.counting:
                self.left_out()
        return bool(step.counting)

    def left_out(self) -> None:
        """A step goes without its histograms."""
        self._note(
            "histograms",
            "some steps are without histograms, for too many of them were waiting to be stored: "
            f"Sampling(histograms={self._every}) asks for one each {self._every} steps; ask for "
            "fewer",
        )

    def before_update(self, step: Step, key: int, positions: Sequence[int]) -> None:
        """Reads weights, and copies them for `after_update` with the same key."""
        weights = [local(self._parameters.tensors[i]).detach() for i in positions]
        step.tables.append(("weights", self._parameters.read(positions, weights, full=True)))
        self._snapshots[key] = Snapshot(self._parameters, positions)

    def after_update(self, step: Step, key: int) -> None:
        """Reads how far the weights have moved, if they were copied before."""
        snapshot = self._snapshots.pop(key, None)
        if snapshot is not None:
            step.tables.append(("updates", snapshot.read()))

    def forget(self) -> None:
        """Lets go of the copies of weights that nobody has asked for."""
        self._snapshots.clear()
