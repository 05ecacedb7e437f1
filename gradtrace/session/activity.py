"""What a loop has done so far, in numbers, as the background thread may read it at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

MOST = 256
"""Parameters whose versions are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Counts since the trace began, and how things stand.

    Each count is kept by one addition in the training thread; reading them all takes some
    microseconds, holds no lock, and may mix the counts of two neighbouring events.
    """

    records: int = 0
    """Steps that were handed over."""
    backwards: int = 0
    """Backwards that reached traced parameters."""
    others: int = 0
    """Backwards in the training thread that reached none."""
    elsewhere: int = 0
    """Backwards in other threads, whose parameters are not looked at."""
    lost: int = 0
    """How often gradients were thrown away, by whatever hand."""
    moved: int = 0
    """How often some traced parameters' versions were seen to have changed."""
    strangers: int = 0
    """Steps of torch optimizers that hold no traced parameter, in the training thread."""
    batches: int = 0
    """Batches delivered while gradients were enabled."""
    pieces: int = 0
    """Uses of gradients that wait for the rest of their step."""
    marks: int = 0
    """Calls of trace.step(): from the first one on nothing else ends a step."""
    step_after: str = ""
    """The class of the optimizer that ends steps, where the user named one."""
    shared: bool = False
    """Whether several threads train these parameters, which is told elsewhere."""
    in_closure: bool = False
    """Whether an optimizer evaluates its closure now."""
    frozen: bool = False
    """Whether no traced parameter asks for a gradient."""


class Moves:
    """Counts how often some of the parameters had changed since the look before. One thread.

    Versions are compared, not values: 0.1 us each, nothing is read from a device, and no gradient
    is touched, which autograd may be writing. What is written through `p.data` has none.
    """

    def __init__(self) -> None:
        self.count = 0
        self._versions: list[int] | None = None

    def look(self, parameters: Sequence[Tensor]) -> int:
        """How often, this look included."""
        some = parameters[:: max(1, len(parameters) // MOST)]
        versions = [0 if p.is_inference() else p._version for p in some]
        if self._versions is not None and versions != self._versions:
            self.count += 1
        self._versions = versions
        return self.count
