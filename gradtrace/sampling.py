"""How often each kind of measurement is taken, and of which layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import NamedTuple


class Due(NamedTuple):
    """What one step measures; `full` asks for what costs an accelerator extra passes."""

    gradients: bool
    activations: bool
    updates: bool
    histograms: bool
    full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Every how many optimizer steps each kind is measured; 0 = never.

    `gradients`: per-layer gradient statistics and the global norm. `activations`: outputs of
    modules and the gradients arriving there (output gradients). `updates`: weights, update sizes.
    `histograms`: how each layer's gradient values are distributed; taken together with `gradients`,
    and off unless asked for: it costs another pass over them, and about 0.2 kB a layer on disk.
    Everything that is not 0 is measured on the `first` steps and on the `burst` steps after a
    spike. `include` and `exclude` are globs over layer names (`"encoder.*"`); exclude wins.

    Raises TypeError or ValueError for cadences that are no non-negative integers and for globs
    that are no strings.
    """

    gradients: int = 1
    activations: int = 50
    updates: int = 50
    histograms: int = 0
    first: int = 10
    burst: int = 5
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("include", "exclude"):
                single = isinstance(value, str) or not isinstance(value, Iterable)
                globs = () if single else tuple(value)
                if single or not all(isinstance(glob, str) for glob in globs):
                    raise TypeError(
                        f"Sampling.{f.name} is {value!r}; expected a sequence of globs such as "
                        f'("encoder.*",): wrap a single glob in a tuple'
                    )
                object.__setattr__(self, f.name, globs)
            elif isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"Sampling.{f.name} is {value!r}; expected a number of steps (an int >= 0)"
                )
            elif value < 0:
                raise ValueError(
                    f"Sampling.{f.name} is {value}; expected a number of steps >= 0: "
                    "use 0 to switch it off"
                )

    def due(self, step: int, burst_until: int = -1) -> Due:
        """What `step` (0-based) measures; steps below `burst_until` measure everything.

        Depends on the step number alone, so that all ranks decide alike.
        """
        everything = step < self.first or step < burst_until

        def on(every: int) -> bool:
            return every > 0 and (everything or step % every == 0)

        updates, histograms = on(self.updates), on(self.histograms)
        return Due(
            gradients=on(self.gradients) or histograms,
            activations=on(self.activations),
            updates=updates,
            histograms=histograms,
            full=everything or updates,
        )

    def selects(self, name: str) -> bool:
        """Whether a layer of this name is measured."""
        return any(fnmatchcase(name, glob) for glob in self.include) and not any(
            fnmatchcase(name, glob) for glob in self.exclude
        )
