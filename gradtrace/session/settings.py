"""The arguments of a trace, checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.exporter import Exporter, resolve_exporters
from gradtrace.records import Spike
from gradtrace.runlog import check_run_name, refuse_taken
from gradtrace.sampling import Sampling
from gradtrace.session import options

OnSpike = Callable[[Spike], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `gradtrace(...)` was asked for; made by `check`."""

    name: str
    rank: int
    world_size: int
    models: Mapping[str, nn.Module]
    exporters: Sequence[Exporter]
    loaders: Sequence[DataLoader[Any]]
    sample_ids: Callable[[Any], Any] | None
    sampling: Sampling
    spikes: SpikeRule | None
    on_spike: tuple[OnSpike, ...]
    directory: Path | None
    config: Mapping[str, Any]
    max_bytes: int
    close_timeout: float

    @classmethod
    def check(
        cls,
        model: Any,
        *,
        exporters: Any,
        loader: Any,
        sample_ids: Any,
        sampling: Any,
        spikes: Any,
        on_spike: Any,
        directory: str | os.PathLike[str] | None,
        run: str | None,
        config: Any,
        max_bytes: Any,
        close_timeout: Any,
    ) -> Settings:
        """Raises TypeError or ValueError that says what was got, expected, and what to do."""
        models = options.check_models(model)
        if not isinstance(sampling, Sampling):
            raise TypeError(
                f"sampling is a {type(sampling).__name__}; expected gradtrace.Sampling(...)"
            )
        if spikes is not None and not isinstance(spikes, SpikeRule):
            raise TypeError(
                f"spikes is a {type(spikes).__name__}; expected gradtrace.SpikeRule(...), or None "
                "to look for none"
            )
        callbacks: tuple[OnSpike, ...] = options.check_callbacks("on_spike", on_spike)
        if callbacks and spikes is None:
            raise ValueError(
                "on_spike is given together with spikes=None, which looks for no spikes; expected "
                "one of them: leave spikes out to have on_spike called"
            )
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(
                f"config is a {type(config).__name__}; expected a mapping of hyper-parameters: "
                "use vars(args) for an argparse namespace"
            )
        options.check_positive("max_bytes", max_bytes, "bytes")
        options.check_positive("close_timeout", close_timeout, "seconds")
        loaders = options.check_loaders(loader)
        sample_ids = options.check_callable("sample_ids", sample_ids)
        chosen = resolve_exporters(exporters)
        where = options.check_directory(directory)
        rank, world_size = options.rank_and_world()
        name = options.new_run_name() if run is None else run
        if rank and run is not None:
            # Every rank writes a directory of its own.
            name = f"{run}.rank{rank}"
        check_run_name(name)
        if where is not None:
            refuse_taken(where, name)
        return cls(
            name=name,
            rank=rank,
            world_size=world_size,
            models=models,
            exporters=chosen,
            loaders=loaders,
            sample_ids=sample_ids,
            sampling=sampling,
            spikes=spikes,
            on_spike=callbacks,
            directory=where,
            config=dict(config or {}),
            max_bytes=int(max_bytes),
            close_timeout=float(close_timeout),
        )
