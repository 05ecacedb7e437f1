"""What a run says of its model."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch
from torch import nn

from gradtrace import Sampling
from gradtrace.measure.parameters import Parameters
from gradtrace.session import describe
from gradtrace.session.describe import (
    describe_modules,
    describe_parameters,
    is_sharded,
    new_run_name,
    rank_and_world,
)


def test_parameters_and_modules_are_described() -> None:
    """Names with the model's, shapes, types, and what is trained."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    model[0].bias.requires_grad_(False)
    models = {"critic": model}
    parameters = Parameters(models, Sampling())
    assert describe_parameters(parameters) == [
        {
            "name": f"critic.0.{name}",
            "shape": shape,
            "dtype": "float32",
            "device": "cpu",
            "trainable": name == "weight",
        }
        for name, shape in (("weight", [3, 2]), ("bias", [3]))
    ]
    assert describe_modules(models) == [
        {"name": "critic", "type": "Sequential"},
        {"name": "critic.0", "type": "Linear"},
        {"name": "critic.1", "type": "ReLU"},
    ]
    assert not is_sharded(parameters, models)


def test_what_a_wrapper_shards_is_known() -> None:
    """Parameters that are parts of a whole are told by what FSDP2 gives them."""

    class Sharded(nn.Parameter):
        def to_local(self) -> None:
            """What a DTensor has."""

    model = nn.Linear(2, 2)
    model.weight = Sharded(model.weight.detach())
    assert is_sharded(Parameters({"": model}, Sampling()), {"": model})


def test_run_names_are_dates_that_differ() -> None:
    """Sorted by name runs are sorted by time, and two of one second differ."""
    names = {new_run_name() for _ in range(1000)}
    assert len(names) == 1000 and all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{10}", n) for n in names)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"RANK": "3"}, (3, 1)),
        ({"RANK": "three", "WORLD_SIZE": "8"}, (0, 1)),
    ],
)
def test_a_launcher_tells_the_rank(
    environment: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before torch.distributed is set up the environment knows; nonsense in it is one rank."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank_and_world() == expected


def test_torch_knows_the_rank_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group that is set up counts, whatever the environment says."""
    dist: Any = torch.distributed
    if not dist.is_available():
        pytest.skip("this torch is built without torch.distributed")
    monkeypatch.setenv("RANK", "5")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert rank_and_world() == (0, 1)
    finally:
        dist.destroy_process_group()


def test_versions_are_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, torch, numpy and pyarrow as they are; a package without metadata is said to be."""

    def version(package: str) -> str:
        if package == "gradtrace":
            raise PackageNotFoundError(package)
        return f"{package}-1"

    monkeypatch.setattr(describe, "version", version)
    assert describe.versions() == {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gradtrace": "not installed",
        "numpy": "numpy-1",
        "pyarrow": "pyarrow-1",
    }
