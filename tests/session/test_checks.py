"""Each check by itself: what it lets through, and as what."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import alone
from torch import nn
from torch.utils.data import DataLoader

from gradtrace import gradtrace
from gradtrace.session import checks

MODEL = nn.Linear(2, 2)


class Data(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 3


def test_models_are_known_by_prefix() -> None:
    """One model has the prefix "", a mapping its own keys; lazy layers count once initialised."""
    lazy = nn.Sequential(nn.LazyLinear(3))
    lazy(torch.zeros(1, 2))
    assert checks.check_models(MODEL) == {"": MODEL}
    assert checks.check_models({"a": lazy, "b": nn.ReLU()}).keys() == {"a", "b"}
    with pytest.raises(ValueError, match=r"no parameters.*expected.*pass that one"):
        checks.check_models({"a": nn.ReLU()})


def test_one_loader_or_several() -> None:
    """A loader, a list, a tuple or none of them; an iterator of loaders is no list."""
    loader = DataLoader(Data())
    assert checks.check_loaders(None) == [] and checks.check_loaders([]) == []
    assert checks.check_loaders(loader) == [loader]
    assert checks.check_loaders((loader, loader)) == [loader, loader]
    for wrong in (iter([loader]), {"train": loader}, "loader", 3):
        with pytest.raises(TypeError, match=r"loader is a .*; expected a torch DataLoader or a"):
            checks.check_loaders(wrong)


def test_a_callable_or_none() -> None:
    """Anything that can be called is let through as it is."""
    assert checks.check_callable("sample_ids", None) is None
    assert checks.check_callable("sample_ids", len) is len
    with pytest.raises(TypeError, match="sample_ids is a str; expected a callable"):
        checks.check_callable("sample_ids", "len")


def test_callbacks_whose_parameters_fit_or_are_not_known() -> None:
    """Built-in functions, methods, defaults and `*args` are taken as they are, one or many."""
    heard: list[Any] = []
    fitting: list[Any] = [heard.append, print, lambda spike, more=1: None, lambda *all: None, max]
    for callback in fitting:
        assert checks.check_callbacks("on_spike", callback) == (callback,)
    assert checks.check_callbacks("on_spike", iter(fitting)) == tuple(fitting)
    assert checks.check_callbacks("on_spike", None) == checks.check_callbacks("on_spike", ()) == ()
    with pytest.raises(TypeError, match=r"on_spike is \{'a': 1\}; expected a callable"):
        checks.check_callbacks("on_spike", {"a": 1})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((wrong, TypeError) for wrong in ("1", None, True, Fraction(1, 2), 1j)),
        *((wrong, ValueError) for wrong in (0, -1, math.inf, -math.inf, math.nan)),
    ],
)
def test_what_is_no_positive_number(value: Any, error: type[Exception]) -> None:
    """Told with its name, value and unit."""
    with pytest.raises(error, match=r"limit is .*; expected a .*of metres above 0"):
        checks.check_positive("limit", value, "metres")


def test_positive_numbers_pass() -> None:
    """However small or large."""
    for value in (1, 1e-300, 10**400):
        checks.check_positive("limit", value, "metres")


def test_logged_values_are_floats_or_copies() -> None:
    """What float() takes becomes a float; a tensor of one value is copied, and not read."""
    live = torch.tensor([[2.0]], requires_grad=True)
    meta = torch.ones((), device="meta")
    given: dict[str, Any] = {"a": 1, "b": np.float32(0.5), "c": live, "d": meta, "e": True}
    got = checks.check_logged(given)
    assert got["a"] == 1.0 and isinstance(got["a"], float)
    assert (got["b"], got["e"]) == (0.5, 1.0)
    copied = got["c"]
    assert isinstance(copied, torch.Tensor) and not copied.requires_grad
    with torch.no_grad():
        live.zero_()
    assert float(copied) == 2.0
    assert isinstance(got["d"], torch.Tensor) and got["d"].device.type == "meta"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), r"tensor of shape \(3,\); expected one value: reduce it first"),
        (torch.ones(0), r"tensor of shape \(0,\); expected one value"),
        (torch.tensor(1j), r"got a tensor of torch.complex64; expected a real.*its .abs\(\)"),
        ("high", "got a str; expected a float or a 0-dim tensor"),
        ("0.5", "got a str; expected a float or a 0-dim tensor"),
        (b"0.5", "got a bytes; expected a float or a 0-dim tensor"),
        (None, "got a NoneType; expected a float"),
        (10**400, "got a int; expected a float"),
        (1j, "got a complex; expected a float"),
    ],
)
def test_what_cannot_be_logged_raises_at_the_call(value: Any, message: str) -> None:
    """`trace.log` raises for it, running or not, and keeps none of the values."""
    trace = gradtrace(MODEL, directory=None)
    with pytest.raises(TypeError, match=rf"^log\(x=\.\.\.\) .*{message}"):
        trace.log(x=value)
    with trace:
        with pytest.raises(TypeError, match=message):
            trace.log(fine=1.0, x=value)
        trace.step()
    assert trace.steps == []


def test_a_directory_is_a_path_of_any_kind(tmp_path: Path) -> None:
    """Text and path objects are alike, whether or not it exists; a file is refused."""
    assert checks.check_directory(None) is None
    assert checks.check_directory("runs/a") == Path("runs/a")
    assert checks.check_directory(tmp_path) == checks.check_directory(str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="which is a file; expected a folder"):
        checks.check_directory(tmp_path / "file")
    with pytest.raises(TypeError, match=r"directory is b'runs'; expected the path"):
        checks.check_directory(b"runs")


def test_of_a_distributed_value_the_local_one_is_logged() -> None:
    """Where every rank holds it; a part or a summand is refused at the call, and no step lost."""
    with alone() as make:
        same = checks.check_logged({"x": make(torch.tensor(2.0), "replicate")})["x"]
        assert type(same) is torch.Tensor and float(same) == 2.0
        model = nn.Linear(1, 1)
        with gradtrace(model, directory=None) as trace:
            for placement, value in (("partial", torch.tensor(2.0)), ("shard", torch.ones(1))):
                with pytest.raises(TypeError, match=r"holds a part .*full_tensor\(\)"):
                    trace.log(x=make(value, placement))
            trace.log(y=make(torch.tensor(3.0), "replicate"))
            model(torch.ones(1, 1)).sum().backward()
            torch.optim.SGD(model.parameters()).step()
    assert [dict(step.logged) for step in trace.steps] == [{"y": 3.0}]
