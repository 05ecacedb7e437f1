"""What a GradScaler does is told: scaling, unscaling, steps taken and skipped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradtrace.taps.patches import Target, registry
from gradtrace.taps.scaler import loss_scale, scaler_targets


class Watching:
    """Remembers what it is told, and a parameter's gradient then."""

    def __init__(self) -> None:
        self.parameter = nn.Parameter(torch.tensor(1.0))
        self.optimizer: Optimizer = torch.optim.SGD([self.parameter], lr=1.0)
        self.told: list[tuple[Any, ...]] = []

    def gradient(self) -> float | None:
        return None if self.parameter.grad is None else float(self.parameter.grad)

    def scaled(self, raw: Any, scaled: Any, scaler: Any) -> None:
        self.told.append(("scaled", raw, scaled, scaler))

    def unscaled(self, scaler: Any, optimizer: Optimizer) -> None:
        self.told.append(("unscaled", scaler, optimizer, self.gradient()))

    def before_scaler_step(self, scaler: Any, optimizer: Optimizer) -> Any:
        self.told.append(("before", scaler, optimizer, self.gradient()))
        return f"token {len(self.told)}"

    def after_scaler_step(self, token: Any, optimizer: Optimizer, returned: bool) -> None:
        self.told.append(("after", token, optimizer, returned))

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.told]


def targets() -> list[Target]:
    return [target for _, target in scaler_targets() if isinstance(target, Target)]


@pytest.fixture
def watching() -> Iterator[Watching]:
    observer = Watching()
    ends = [registry.attach(target, observer) for target in targets()]
    yield observer
    for end in ends:
        end()


class OwnScaler(torch.amp.GradScaler):
    """As users extend it."""

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        return super().step(optimizer, *args, **kwargs)


@pytest.mark.parametrize("kind", [torch.amp.GradScaler, OwnScaler])
def test_a_step_is_told_in_order(watching: Watching, kind: type[Any]) -> None:
    """Loss and scaled loss, gradients once they are unscaled, then the step around it all."""
    scaler = kind("cpu", init_scale=8.0)
    loss = watching.parameter * 3.0
    scaled = scaler.scale(loss)
    scaled.backward()
    scaler.unscale_(watching.optimizer)
    scaler.step(watching.optimizer)
    told = watching.told
    assert told[0][1] is loss and told[0][2] is scaled and told[0][3] is scaler
    assert float(scaled.detach()) == 24.0
    assert told[1:] == [
        ("unscaled", scaler, watching.optimizer, 3.0),
        ("before", scaler, watching.optimizer, 3.0),
        ("after", "token 3", watching.optimizer, True),
    ]


def test_a_step_unscales_by_itself(watching: Watching) -> None:
    """Without a call of its own the unscaling is told inside the step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(watching.parameter * 3.0).backward()
    scaler.step(watching.optimizer)
    assert watching.names == ["scaled", "before", "unscaled", "after"]
    assert [told[3] for told in watching.told[1:3]] == [24.0, 3.0]


def test_several_losses_are_one_call(watching: Watching) -> None:
    """What was given and what came back are handed on as they are."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    losses = [torch.tensor(1.0), torch.tensor(2.0)]
    scaled: Any = scaler.scale(losses)
    assert [float(s) for s in scaled] == [2.0, 4.0]
    assert watching.told == [("scaled", losses, scaled, scaler)]


def test_a_scaler_that_is_off_says_nothing(watching: Watching) -> None:
    """Disabled, it passes everything through untold, and has no scale."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss: Tensor = watching.parameter * 3.0
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.unscale_(watching.optimizer)
    scaler.step(watching.optimizer)
    assert float(watching.parameter.detach()) == -2.0
    assert watching.told == [] and loss_scale(scaler) is None


def test_a_loss_scaled_inside_a_compiled_region_is_not_told(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the compiler traces, the loss is scaled as torch does it."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    scaled = torch.amp.GradScaler("cpu", init_scale=8.0).scale(torch.tensor(3.0))
    assert float(scaled) == 24.0 and watching.told == []


def test_a_step_that_raises_is_told_as_one(watching: Watching) -> None:
    """The exception comes out, and the end says that nothing returned."""
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises((AssertionError, RuntimeError)):
        scaler.step(watching.optimizer)  # nothing was scaled
    assert watching.told[-1] == ("after", "token 1", watching.optimizer, False)


def test_arguments_and_result_pass_through(watching: Watching) -> None:
    """`step` gets what the user gave, and returns what the optimizer returned."""

    class Telling(torch.optim.SGD):
        def step(self, closure: Any = None, *, word: str = "") -> Any:
            return closure, word

    watching.optimizer = Telling([watching.parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(watching.parameter * 1.0).backward()
    result: Any = scaler.step(watching.optimizer, 7, word="x")
    assert result == (7, "x")


def test_the_scale_is_a_copy() -> None:
    """A scale that was read does not change when the scaler lowers it after an overflow."""
    parameter = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert loss_scale(scaler) is None  # torch makes it with the first loss
    scaler.scale(parameter * math.inf).backward()
    found = loss_scale(scaler)
    scaler.step(optimizer)
    scaler.update()
    assert found is not None and float(found) == 8.0
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("name", ["scale", "unscale_", "step"])
def test_what_another_torch_lacks_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A method that is missing is an error under its name; the others are there."""
    monkeypatch.delattr(torch.amp.GradScaler, name)
    own = {key: value for key, value in scaler_targets() if key.startswith("GradScaler.")}
    missing = [key for key, value in own.items() if isinstance(value, AttributeError)]
    assert missing == [f"GradScaler.{name}"] and len(own) == 3


def test_everything_is_restored() -> None:
    """Without observers the class has its own methods."""
    before = dict(vars(torch.amp.GradScaler))
    ends = [registry.attach(target, Watching()) for target in targets()]
    assert dict(vars(torch.amp.GradScaler)) != before
    for end in ends:
        end()
    assert dict(vars(torch.amp.GradScaler)) == before
