"""How far one optimizer step moved each parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradtrace.measure.flat import local
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Reading


class Snapshot:
    """A copy of some parameters from before a step, subtracted in place after it.

    Costs their memory for the length of `optimizer.step()` and, on a CPU, about 1 ms per million
    values. Small differences of neighbouring floats are exact, so the update's norm is too.
    """

    def __init__(self, parameters: Parameters, positions: Sequence[int]) -> None:
        self._parameters = parameters
        self._positions = [i for i in positions if parameters.tensors[i].layout is torch.strided]
        with torch.no_grad():
            self._copies: list[Tensor] = [
                local(parameters.tensors[i]).detach().clone() for i in self._positions
            ]

    def read(self) -> list[Reading]:
        """Starts measuring `after - before`; the snapshot is used up."""
        if not self._positions:
            return []
        now = [local(self._parameters.tensors[i]).detach() for i in self._positions]
        with torch.no_grad():
            torch._foreach_sub_(self._copies, now)
        readings = self._parameters.read(self._positions, self._copies, full=False, norm_only=True)
        self._copies = []
        return readings
