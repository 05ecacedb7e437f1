"""What ran."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gradtrace.records import RunInfo


def test_name_and_start_are_enough() -> None:
    """A run without a directory, of rank 0, about which nothing else is known."""
    info = RunInfo("run", 5.0)
    assert (info.path, info.rank, info.world_size) == (None, 0, 1)
    assert not any((info.parameters, info.modules, info.sampling, info.config, info.versions))


def test_each_has_mappings_of_its_own() -> None:
    """What one run's config is does not reach another's; fields cannot be set."""
    one, two = RunInfo("a", 0.0), RunInfo("b", 0.0, Path("runs/b"))
    assert one.config is not two.config and one.versions is not two.versions
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "c"  # type: ignore[misc]
