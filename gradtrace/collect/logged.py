"""Which step a logged value belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from gradtrace.handover.step import LateLog, Step
from gradtrace.measure.reading import Number, pending


class Logged:
    """What `trace.log` was given, until it is known whose it is. Training thread.

    `late` is told of values of a step that has been handed over.
    """

    def __init__(self, late: Callable[[LateLog], object]) -> None:
        self._late = late
        self._held: dict[str, Number] = {}

    def put(self, values: Mapping[str, float | Tensor], step: Step | None, *, hold: bool) -> None:
        """Values of this step, or of the one that was handed over last.

        `hold` keeps the latter until it shows whether they are of a step that nothing else makes.
        """
        if step is None and not hold:
            self._late(LateLog.of(values))
        else:
            into = self._held if step is None else step.logged
            into |= {name: pending(value) for name, value in values.items()}

    def of_last(self) -> None:
        """Something of the next step has happened: what is held was of the one before."""
        if self._held:
            self._late(LateLog(self._held))
            self._held = {}

    def of(self, step: Step) -> None:
        """What is held is this step's."""
        step.logged |= self._held
        self._held = {}
