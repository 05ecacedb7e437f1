"""What is measured one tensor at a time while a step is on its way, and where it is summed up."""

from __future__ import annotations

from gradtrace.collect.measuring import Note
from gradtrace.handover.step import Step
from gradtrace.measure.chunks import Accumulator
from gradtrace.measure.parameters import Parameters

MOST = 1 << 15
"""Outputs of modules that are measured in one step."""


class Outputs:
    """The open step's module outputs, their gradients, and gradients read inside a backward.

    `module_names` are those of the rows of the first two, in the order in which modules first ran.
    Training thread.
    """

    def __init__(self, parameters: Parameters, note: Note = lambda source, message: None) -> None:
        self._parameters = parameters
        self._note = note
        self.module_names: list[str] = []
        self._names: tuple[str, ...] = ()
        self.start()

    def start(self) -> None:
        """Empties all three."""
        self.activations: Accumulator = self._parameters.accumulator(MOST)
        self.output_gradients: Accumulator = self._parameters.accumulator(MOST)
        self.loose: Accumulator = self._parameters.accumulator()
        self._spoiled = False

    def spoil(self) -> None:
        """Not all module outputs of the open step were seen: it has none. Any thread."""
        self._spoiled = True

    def put_into(self, step: Step) -> None:
        """Makes tables of the step of what there is."""
        if self.activations.full and step.due.activations:
            self._note(
                "activations",
                f"more than {MOST:,} outputs of modules were seen in one step: its activations and "
                "output gradients are those of the first; Sampling(exclude=...) leaves layers out, "
                "and trace.step() ends a step",
            )
        for table, accumulator in (
            ("activations", self.activations),
            ("output_gradients", self.output_gradients),
            ("gradients", self.loose),
        ):
            void = self._spoiled and accumulator is not self.loose
            if accumulator and step.asks_for(table) and not void:
                step.tables.append((table, [accumulator.reading()]))

    def modules(self) -> tuple[str, ...]:
        """The names as they are now; the same tuple while there are no new ones."""
        if len(self._names) != len(self.module_names):
            self._names = tuple(self.module_names)
        return self._names
