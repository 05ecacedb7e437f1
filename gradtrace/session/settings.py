"""The arguments of a trace: their names, defaults and checks."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.exporter import Exporter, resolve_exporters
from gradtrace.records import Spike
from gradtrace.runlog.directory import check_run_name, refuse_taken
from gradtrace.sampling import Sampling
from gradtrace.session import checks
from gradtrace.session.describe import new_run_name, rank_and_world

OnSpike = Callable[[Spike], object]

_SAMPLING = Sampling()
_RULE = SpikeRule()

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """What `gradtrace(...)` was asked for, checked when it is made.

    The arguments keep what was given; what follows from them stands in the fields below. Raises
    TypeError or ValueError that says what was got, what was expected and what to do.
    """

    model: nn.Module | Mapping[str, nn.Module]
    _: KW_ONLY
    exporters: Sequence[Exporter | str] = ()
    loader: DataLoader[Any] | Sequence[DataLoader[Any]] | None = None
    sample_ids: Callable[[Any], Any] | None = None
    step_after: Optimizer | None = None
    sampling: Sampling = _SAMPLING
    spikes: SpikeRule | None = _RULE
    on_spike: OnSpike | Sequence[OnSpike] | None = None
    directory: str | os.PathLike[str] | None = "gradtrace-runs"
    run: str | None = None
    config: Mapping[str, Any] | None = None
    max_bytes: int = 2 << 30
    close_timeout: float = 10.0

    models: Mapping[str, nn.Module] = field(init=False)
    """By prefix; a single one has the prefix ""."""
    targets: Sequence[Exporter] = field(init=False)
    """The exporters, made where they were named."""
    loaders: Sequence[DataLoader[Any]] = field(init=False)
    callbacks: tuple[OnSpike, ...] = field(init=False)
    folder: Path | None = field(init=False)
    """Where run directories go."""
    name: str = field(init=False)
    """The run's."""
    rank: int = field(init=False)
    world_size: int = field(init=False)

    def __post_init__(self) -> None:
        derived: dict[str, Any] = {"models": checks.check_models(self.model)}
        if not isinstance(self.sampling, Sampling):
            raise TypeError(
                f"sampling is a {type(self.sampling).__name__}; expected gradtrace.Sampling(...)"
            )
        if self.spikes is not None and not isinstance(self.spikes, SpikeRule):
            raise TypeError(
                f"spikes is a {type(self.spikes).__name__}; expected gradtrace.SpikeRule(...), or "
                "None to look for none"
            )
        derived["callbacks"] = checks.check_callbacks("on_spike", self.on_spike)
        if derived["callbacks"] and self.spikes is None:
            raise ValueError(
                "on_spike is given together with spikes=None, which looks for no spikes; expected "
                "one of them: leave spikes out to have on_spike called"
            )
        if self.config is not None and not isinstance(self.config, Mapping):
            raise TypeError(
                f"config is a {type(self.config).__name__}; expected a mapping of "
                "hyper-parameters: use vars(args) for an argparse namespace"
            )
        checks.check_positive("max_bytes", self.max_bytes, "bytes")
        checks.check_positive("close_timeout", self.close_timeout, "seconds")
        derived["loaders"] = checks.check_loaders(self.loader)
        checks.check_callable("sample_ids", self.sample_ids)
        checks.check_step_after(self.step_after, derived["models"])
        derived["targets"] = resolve_exporters(self.exporters)
        derived["folder"] = folder = checks.check_directory(self.directory)
        derived["rank"], derived["world_size"] = rank, world = rank_and_world()
        name = new_run_name() if self.run is None else self.run
        if world > 1 and self.run is not None:
            # A name that only some ranks refuse would leave the others waiting for them.
            check_run_name(f"{check_run_name(self.run)}.rank{world - 1}")
        if rank and self.run is not None:
            # Every rank writes a directory of its own.
            name = f"{self.run}.rank{rank}"
        derived["name"] = check_run_name(name)
        if folder is not None:
            refuse_taken(folder, name)
        for key, value in derived.items():
            object.__setattr__(self, key, value)

    def without_loaders(self) -> Settings:
        """A copy that keeps no loader alive, and so none of its workers, and no optimizer."""
        other = copy.copy(self)
        object.__setattr__(other, "loader", None)
        object.__setattr__(other, "loaders", ())
        object.__setattr__(other, "step_after", None)
        return other


def takes(make: Callable[P, S]) -> Callable[[Callable[[S], T]], Callable[P, T]]:
    """Gives a function of one object the arguments of `make`, which makes that object.

    So the arguments are named, typed and defaulted where they are checked, and nowhere else.
    """
    signature = inspect.signature(make)

    def decorate(function: Callable[[S], T]) -> Callable[P, T]:
        @functools.wraps(function)
        def taking(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                known = ", ".join(signature.parameters)
                raise TypeError(
                    f"{function.__name__}(): {error}; expected the arguments {known}"
                ) from None
            return function(make(*args, **kwargs))

        # What was copied from `function` says that it takes one object.
        del taking.__wrapped__
        returns = inspect.signature(function).return_annotation
        taking.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=returns
        )
        types = {name: one.annotation for name, one in signature.parameters.items()}
        taking.__annotations__ = types | {"return": returns}
        return taking

    return decorate
