"""Compiled code: when it begins and ends, and that nothing of a trace reaches the compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from gradtrace import Sampling, gradtrace
from gradtrace.taps.compiled import compiled_targets
from gradtrace.taps.patches import registry


class Heard:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def compiled_begins(self) -> None:
        self.calls.append("begins")

    def compiled_ends(self) -> None:
        self.calls.append("ends")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def heard() -> Iterator[Heard]:
    found = Heard()
    ends = [registry.attach(target, found) for target in compiled_targets()]
    yield found
    for end in ends:
        end()


def compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function, backend="eager")


def test_a_call_of_compiled_code_is_told(heard: Heard) -> None:
    """Once each, from the first call on, which compiles; plain code says nothing."""
    fast = compiled(lambda x: x.sin() + 1)
    torch.ones(2).sin()
    assert heard.calls == []
    for count in (1, 2, 3):
        fast(torch.ones(2))
        assert heard.calls == ["begins", "ends"] * count


def test_compiled_code_in_compiled_code_is_one(heard: Heard) -> None:
    """And what it calls that is not to be compiled belongs to it."""
    inner = compiled(lambda x: x.sin())
    plain = torch.compiler.disable(lambda x: x + 1)
    fast = compiled(lambda x: inner(x) + plain(x))
    fast(torch.ones(2))
    assert heard.calls == ["begins", "ends"]


def test_a_compiled_module_is_told_before_it_looks_at_hooks(heard: Heard) -> None:
    """It would warn its user of ours; an error in it ends it too."""
    module = compiled(nn.Linear(2, 1))
    module(torch.ones(1, 2))
    assert heard.calls == ["begins", "ends"]
    with pytest.raises(Exception, match=r"."):
        module(torch.ones(1, 3))
    assert heard.calls == ["begins", "ends"] * 2


def test_an_optimizer_is_no_compiled_code(heard: Heard) -> None:
    """Its steps are wrapped to keep the compiler out."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert heard.calls == []


def test_an_error_in_compiled_code_ends_it(heard: Heard) -> None:
    """It passes through, and what follows is plain."""

    def wrong(x: Tensor) -> Tensor:
        return x @ torch.ones(5)

    with pytest.raises(Exception, match=r"."):
        compiled(wrong)(torch.ones(2))
    assert heard.calls == ["begins", "ends"]


def test_each_thread_is_told_of_by_itself(heard: Heard) -> None:
    """What one thread runs is nothing to the state of another."""
    fast = compiled(lambda x: x.sin())

    def outer(x: Tensor) -> Tensor:
        thread = Thread(target=fast, args=(x,))
        thread.start()
        thread.join()
        return x

    plain: Any = torch.compiler.disable(outer)
    fast(torch.ones(2))
    compiled(lambda x: plain(x) + 1)(torch.ones(2))
    assert heard.calls.count("begins") == heard.calls.count("ends") >= 2


# -- in a trace ---


class Block(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class Mixed(nn.Module):
    """An eager layer, whose output goes into a compiled one, and an eager one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.block = Block(nn.Linear(4, 4), nn.ReLU())
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.block(self.first(x)))
        return found


def raw(model: Mixed) -> tuple[nn.Module, Any]:
    return model, compiled(model)


def wrapped(model: Mixed) -> tuple[nn.Module, Any]:
    fast = compiled(model)
    return fast, fast


def in_place(model: Mixed) -> tuple[nn.Module, Any]:
    model.compile(backend="eager")
    return model, model


def block(model: Mixed) -> tuple[nn.Module, Any]:
    model.block.compile(backend="eager")
    return model, model


def function(model: Mixed) -> tuple[nn.Module, Any]:
    inside = compiled(model.block.forward)

    def forward(x: Tensor) -> Any:
        return model.last(inside(model.first(x)))

    return model, forward


FORMS = [raw, wrapped, in_place, block, function]


def train(form: Any, *, traced: bool, warm: int) -> tuple[list[float], int, int, Any]:
    """Losses, graphs and graph breaks; from step `warm` on nothing may be compiled any more."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    watched, forward = form(Mixed())
    optimizer = torch.optim.SGD(watched.parameters(), lr=0.05)
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        loss = forward(torch.randn(5, 3)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    for _ in range(warm):
        step()
    trace = None
    stance = "fail_on_recompile" if warm else "default"
    with torch.compiler.set_stance(stance):
        if traced:
            sampling = Sampling(first=2, activations=3, updates=4)
            with gradtrace(watched, directory=None, sampling=sampling) as trace:
                for _ in range(12):
                    step()
        else:
            for _ in range(12):
                step()
    counters = torch._dynamo.utils.counters
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    return losses, graphs, breaks, trace


@pytest.mark.filterwarnings("error:Using `torch.compile")
@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_compiled_for_a_trace(form: Any, warm: int) -> None:
    """As many graphs and breaks as without, compiled before it or within; the same losses."""
    bare = train(form, traced=False, warm=warm)
    seen = train(form, traced=True, warm=warm)
    assert seen[:3] == bare[:3] and bare[1] > 0
    trace = seen[3]
    assert [record.loss for record in trace.steps] == pytest.approx(bare[0][warm:], rel=1e-6)
    assert all(record.grad_norm is not None for record in trace.steps)
    assert [note.source for note in trace.notes] == ["activations"]
    assert "compiled regions are not observed" in trace.notes[0].message
    assert not torch_module._global_forward_hooks


@pytest.mark.parametrize("form", [block, function])
def test_what_is_not_compiled_is_seen(form: Any) -> None:
    """The layers beside a compiled region have their activations, of every sampled step."""
    *_, trace = train(form, traced=True, warm=0)
    tables = [record.activations for record in trace.steps if record.activations is not None]
    assert len(tables) == 5
    for table in tables:
        assert {"first", "last"} <= set(table.names)


def test_a_step_that_is_compiled_as_a_whole_is_told() -> None:
    """While the run goes on, with what to do about it; evaluating compiled models is no such."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    fast, look = compiled(step), compiled(model)
    with gradtrace(model, directory=None) as trace:
        with torch.no_grad():
            for _ in range(20):
                look(torch.randn(8, 4))
        assert [n for n in trace.notes if n.source == "steps"] == []
        for _ in range(20):
            fast(torch.randn(8, 4))
        [note] = [n for n in trace.notes if n.source == "steps"]
        assert "torch.compile" in note.message and "compile the model instead" in note.message
