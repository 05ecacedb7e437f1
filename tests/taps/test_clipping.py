"""Every way to clip is told, with the gradients from before, and clips as it would have."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad, clip_grad_norm_, clip_grad_value_

from gradtrace.taps.clipping import as_list, clip_targets, fsdp_target
from gradtrace.taps.patches import Target, registry

torch_clip: Any = clip_grad


class Watching:
    """Remembers calls, and the gradients of the parameters at each."""

    def __init__(self) -> None:
        self.before: list[list[Any]] = []
        self.after: list[tuple[Any, ...]] = []

    def before_clip(self, parameters: Iterable[Any]) -> Any:
        self.before.append([p.grad.tolist() for p in parameters])
        return f"token {len(self.before)}"

    def after_norm_clip(self, token: Any, max_norm: Any, total_norm: Tensor, order: float) -> None:
        self.after.append((token, max_norm, float(total_norm), order))

    def after_value_clip(self, token: Any, clip_value: Any) -> None:
        self.after.append((token, clip_value))


def targets() -> list[Target]:
    found = [target for _, target in clip_targets()]
    assert all(isinstance(target, Target) for target in found)
    return [target for target in found if isinstance(target, Target)]


@pytest.fixture
def watching() -> Iterator[Watching]:
    observer = Watching()
    ends = [registry.attach(target, observer) for target in targets()]
    yield observer
    for end in ends:
        end()


def parameters() -> list[nn.Parameter]:
    """Of gradients 3 and 4: norm 5."""
    made = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for parameter, value in zip(made, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([value])
    return made


def grads(some: Iterable[nn.Parameter]) -> list[float]:
    return [float(p.grad) for p in some if p.grad is not None]


SEEN = [[3.0], [4.0]]

NORM: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "imported": lambda p: clip_grad_norm_(p, 1.0),
    "module": lambda p: torch.nn.utils.clip_grad_norm_(p, max_norm=1.0),
    "file": lambda p: clip_grad.clip_grad_norm_(p, 1.0, foreach=False),
    "generator": lambda p: clip_grad_norm_((x for x in p), 1.0),
    "old name": lambda p: torch_clip.clip_grad_norm(p, 1.0),
}


@pytest.mark.parametrize("spelling", NORM)
@pytest.mark.filterwarnings("ignore:.*clip_grad_norm. is now deprecated:FutureWarning")
def test_norm_clipping_is_told_under_any_import(watching: Watching, spelling: str) -> None:
    """Names imported before the patch, too; gradients come out as torch clips them."""
    some = parameters()
    total = NORM[spelling](some)
    assert float(total) == pytest.approx(5.0)
    assert watching.before == [SEEN]
    assert watching.after == [("token 1", 1.0, pytest.approx(5.0), 2.0)]
    assert grads(some) == pytest.approx([0.6, 0.8], rel=1e-5)


def test_a_single_tensor_is_one_parameter(watching: Watching) -> None:
    """Torch takes a tensor in place of a list; so do we."""
    [one, _] = parameters()
    clip_grad_norm_(one, 1.0)
    clip_grad_value_(one, 0.5)
    assert [len(seen) for seen in watching.before] == [1, 1]
    assert watching.after[0][:3] == ("token 1", 1.0, 3.0)


@pytest.mark.parametrize(
    ("order", "norm"), [(2.0, 5.0), (1.0, 7.0), (math.inf, 4.0), (3, 91 ** (1 / 3))]
)
def test_the_order_of_the_norm_is_told(watching: Watching, order: float, norm: float) -> None:
    """By position and by name."""
    clip_grad_norm_(parameters(), 1.0, order)
    clip_grad_norm_(parameters(), 1.0, norm_type=order)
    assert [(called[2], called[3]) for called in watching.after] == [
        (pytest.approx(norm), order)
    ] * 2


def test_scaling_by_a_known_norm_is_told(watching: Watching) -> None:
    """`clip_grads_with_norm_` alone, whose order is taken for 2."""
    some = parameters()
    nn.utils.clip_grads_with_norm_(some, 1.0, torch.tensor(10.0))
    assert watching.before == [SEEN]
    assert watching.after == [("token 1", 1.0, 10.0, 2.0)]
    assert grads(some) == pytest.approx([0.3, 0.4], rel=1e-5)


def test_a_call_that_raises_leaves_no_order_behind(watching: Watching) -> None:
    """What torch refuses is not told, and the next call's order is its own."""
    some = parameters()
    assert some[0].grad is not None
    some[0].grad.fill_(math.nan)
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(some, 1.0, math.inf, error_if_nonfinite=True)
    assert watching.after == []
    nn.utils.clip_grads_with_norm_(parameters(), 1.0, torch.tensor(5.0))
    assert watching.after[0][3] == 2.0


def test_value_clipping_is_told(watching: Watching) -> None:
    """By list and by generator, by position and by name."""
    some = parameters()
    clip_grad_value_(some, 3.5)
    assert grads(some) == [3.0, 3.5]
    some = parameters()
    nn.utils.clip_grad_value_((parameter for parameter in some), clip_value=3.5)
    assert grads(some) == [3.0, 3.5]
    assert watching.before == [SEEN] * 2
    assert watching.after == [("token 1", 3.5), ("token 2", 3.5)]


def test_a_call_inside_a_compiled_region_is_not_told(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the compiler traces, every function clips as torch's own and tells nothing."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    some = parameters()
    assert float(clip_grad_norm_(some, 1.0)) == pytest.approx(5.0)
    nn.utils.clip_grads_with_norm_(some, 1.0, torch.tensor(2.0))
    clip_grad_value_(some, 0.35)
    assert grads(some) == pytest.approx([0.3, 0.35], rel=1e-5)
    assert watching.before == [] and watching.after == []


def test_nobody_watches_afterwards() -> None:
    """Once the observer is gone torch's functions are what they were, and tell nothing."""
    before = [target.get() for target in targets()]
    observer = Watching()
    ends = [registry.attach(target, observer) for target in targets()]
    assert all(t.get() is not b for t, b in zip(targets(), before, strict=True))
    for end in ends:
        end()
    assert [target.get() for target in targets()] == before
    clip_grad_norm_(parameters(), 1.0)
    clip_grad_value_(parameters(), 1.0)
    assert observer.before == []


@pytest.mark.parametrize("name", ["clip_grad_norm_", "_clip_grads_with_norm_", "clip_grad_value_"])
def test_what_another_torch_lacks_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A function that is missing is an error under its name; the others are there."""
    monkeypatch.delattr(torch_clip, name)
    found = dict(clip_targets())
    assert [key for key, value in found.items() if isinstance(value, AttributeError)] == [name]


def test_fsdp_is_watched_where_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its method is told like the function, with the norm it returned; unused it stays unloaded."""

    class FullyShardedDataParallel:
        def __init__(self) -> None:
            self.held = parameters()

        def parameters(self) -> Iterator[nn.Parameter]:
            return iter(self.held)

        def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
            return torch.tensor(11.0)

    name = "torch.distributed.fsdp"
    fake = SimpleNamespace(FullyShardedDataParallel=FullyShardedDataParallel)
    monkeypatch.setitem(sys.modules, name, fake)
    target = fsdp_target()
    assert target is not None
    observer = Watching()
    end = registry.attach(target, observer)
    model = FullyShardedDataParallel()
    assert float(model.clip_grad_norm_(2.0)) == 11.0
    model.clip_grad_norm_(max_norm=2.0, norm_type=math.inf)
    end()
    model.clip_grad_norm_(2.0)
    assert observer.before == [SEEN] * 2
    assert observer.after == [("token 1", 2.0, 11.0, 2.0), ("token 2", 2.0, 11.0, math.inf)]
    monkeypatch.delitem(sys.modules, name)
    assert fsdp_target() is None


def test_only_iterators_become_lists() -> None:
    """What can be read twice is handed on as it is."""
    some = parameters()
    assert as_list(some) is some and as_list(some[0]) is some[0]
    assert as_list(iter(some)) == some
