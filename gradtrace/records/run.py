"""What ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What ran: handed to `Exporter.open` and written to `run.json`.

    `started` is unix seconds, `path` the run directory, None with `directory=None`. `parameters`
    list name, shape, dtype, device and whether it is trained, `modules` name and type; `config`
    holds the user's hyper-parameters, `sampling` the fields of `Sampling`.
    """

    name: str
    started: float
    path: Path | None = None
    rank: int = 0
    world_size: int = 1
    parameters: Sequence[Mapping[str, Any]] = ()
    modules: Sequence[Mapping[str, Any]] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
