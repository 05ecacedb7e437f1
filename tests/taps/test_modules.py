"""Outputs of modules and the gradients arriving at them are measured where they pass."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import alone
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from truth import compare, rows_of

from gradtrace.measure.chunks import Accumulator, Scratch
from gradtrace.measure.rows import statistics
from gradtrace.records import ACTIVATION_COLUMNS
from gradtrace.taps.modules import ModuleTap, compiled_regions, main_tensor, module_names


class Store:
    """An open step, as far as the tap knows it."""

    def __init__(self) -> None:
        self.activations = Accumulator(Scratch())
        self.output_gradients = self.signals = Accumulator(Scratch())
        self.module_names: list[str] = []
        self.spoiled = False

    def spoil(self) -> None:
        self.spoiled = True

    def check(self, which: str, expected: dict[str, Tensor]) -> None:
        """Exactly these layers were measured, with the statistics of these tensors."""
        accumulator: Accumulator = getattr(self, which)
        rows = rows_of([accumulator.reading()]) if accumulator else {}
        assert {self.module_names[position] for position in rows} == set(expected)
        for position, row in rows.items():
            found = statistics(row[None], with_range=True)[0]
            compare(ACTIVATION_COLUMNS, found, expected[self.module_names[position]])


def unguarded(source: str, function: Callable[..., None]) -> Callable[..., None]:
    return function


def tap(model: nn.Module) -> tuple[ModuleTap, Store]:
    """An armed tap on all modules of a model."""
    store = Store()
    names = module_names({"": model}, lambda prefix, name: name, lambda name: True)
    found = ModuleTap(names, store, unguarded)
    found.arm(True)
    return found, store


@pytest.fixture(autouse=True)
def no_hook_is_left() -> Any:
    torch.manual_seed(0)
    before = dict(torch_module._global_forward_hooks)
    yield
    assert dict(torch_module._global_forward_hooks) == before


def test_outputs_and_their_gradients_are_measured() -> None:
    """Before an in-place module changes them; rows are numbered as modules first run."""
    model = nn.Sequential(OrderedDict(late=nn.Linear(5, 4), act=nn.ReLU(inplace=True)))
    x = torch.randn(7, 5)
    outputs = model[0](x).detach().clone()
    active = outputs.clone().relu_()
    found, store = tap(model)
    model(x).square().sum().backward()
    found.disarm()
    assert store.module_names == ["late", "act"] and found.order() == {"late": 0, "act": 1}
    store.check("activations", {"late": outputs, "act": active})
    store.check("output_gradients", {"late": 2 * active * (outputs > 0), "act": 2 * active})


def test_a_container_shares_what_its_last_child_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensor under two names is measured once and told under both."""
    measured: list[int] = []
    add = Accumulator.add

    def counting(self: Accumulator, position: int, tensor: Tensor, **options: Any) -> bool:
        measured.append(position)
        return add(self, position, tensor, **options)

    monkeypatch.setattr(Accumulator, "add", counting)
    model = nn.Sequential(OrderedDict(outer=nn.Sequential(OrderedDict(inner=nn.Linear(3, 4)))))
    x = torch.randn(2, 3)
    found, store = tap(model)
    output = model(x)
    output.square().sum().backward()
    found.disarm()
    assert store.module_names == ["outer.inner", "outer"]
    assert measured == [0, 0]  # the output, and the gradient that arrives at it
    same = dict.fromkeys(store.module_names, output.detach())
    store.check("activations", same)
    store.check("output_gradients", {name: 2 * tensor for name, tensor in same.items()})


def test_a_changed_tensor_is_measured_again() -> None:
    """What a container changed in place after its last child is its own output."""

    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            doubled: Tensor = self.inner(x).mul_(2)
            return doubled

    model = nn.Sequential(OrderedDict(outer=Doubling()))
    found, store = tap(model)
    output = model(torch.randn(2, 3)).detach()
    found.disarm()
    store.check("activations", {"outer.inner": output / 2, "outer": output})


def test_calls_of_a_step_are_one_population() -> None:
    """A module that runs several times has the statistics of all its outputs together."""
    model = nn.Sequential(nn.Linear(3, 4))
    parts = [torch.randn(2, 3), 5 * torch.randn(6, 3)]
    found, store = tap(model)
    outputs = [model(part) for part in parts]
    found.disarm()
    store.check("activations", {"0": torch.cat(outputs).detach()})


def test_an_unarmed_step_measures_nothing() -> None:
    """Only armed steps have a hook at all, and what was numbered stays numbered."""
    model = nn.Sequential(nn.Linear(3, 4))
    found, store = tap(model)
    assert len(torch_module._global_forward_hooks) == 1
    found.arm(False)
    assert len(torch_module._global_forward_hooks) == 0
    model(torch.randn(2, 3))
    store.check("activations", {})
    found.arm(True)
    found.arm(True)
    assert len(torch_module._global_forward_hooks) == 1
    output = model(torch.randn(2, 3)).detach()
    found.disarm()
    found.disarm()
    store.check("activations", {"0": output})


def test_without_modules_there_is_no_hook() -> None:
    """A tap that watches no module costs no module a call."""
    found = ModuleTap({}, Store(), unguarded)
    found.arm(True)
    assert len(torch_module._global_forward_hooks) == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_evaluation_and_transforms_are_left_out() -> None:
    """Nothing is measured without gradients, inside vmap or grad, or while a graph is traced."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    x = torch.randn(2, 3)
    found, store = tap(model)
    with torch.no_grad():
        model(x)
    torch.func.vmap(model)(x)
    torch.func.grad(lambda values: model(values).sum())(x)
    with torch.inference_mode():
        model(x)
    torch.jit.trace(model, (x,), check_trace=False)
    found.disarm()
    store.check("activations", {})
    store.check("output_gradients", {})


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_counts_once(reentrant: bool) -> None:
    """What a checkpoint runs again in the backward adds nothing to what was seen."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    x = torch.randn(2, 3, requires_grad=True)
    expected = model[0](x).detach()
    found, store = tap(model)
    for _ in range(2):
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    found.disarm()
    twice = torch.cat([expected, expected])
    store.check("activations", {"0": twice, "1": twice.tanh()})


def test_other_models_are_not_seen() -> None:
    """The global hook looks at the watched modules only."""
    watched, other = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 4))
    found, store = tap(watched)
    other(torch.randn(2, 3)).sum().backward()
    found.disarm()
    assert store.module_names == []


def name_of(prefix: str, name: str) -> str:
    return ".".join(part for part in (prefix, name) if part)


def named(models: dict[str, nn.Module], **options: Any) -> list[str]:
    selects = options.get("selects", lambda name: True)
    return list(module_names(models, name_of, selects).values())


def test_modules_have_their_first_name() -> None:
    """Roots are left out unless they are all there is; a shared module is named once."""
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU())})
    assert named({"": model}) == ["a", "b", "b.1"]
    assert named({"": nn.Linear(2, 2)}) == ["Linear"]
    assert named({"critic": nn.Linear(2, 2)}) == ["critic"]
    assert named({"g": model, "c": nn.Sequential(nn.ReLU())}) == ["g.a", "g.b", "g.b.1", "c.0"]
    assert named({"": model}, selects=lambda name: name.startswith("b")) == ["b", "b.1"]


def test_compiled_regions_are_hidden() -> None:
    """Their modules' hooks never run; what is outside of them is watched."""
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(2, 2)))
    assert named({"": compiled}) == []
    assert compiled_regions({"": compiled}) == [compiled]
    part = nn.Sequential(nn.Linear(2, 2))
    part.compile()
    model = nn.ModuleDict({"eager": nn.Linear(2, 2), "fast": part})
    assert named({"": model}) == ["eager"]
    assert compiled_regions({"": model}) == [part]
    assert compiled_regions({"": nn.Linear(2, 2)}) == []


@dataclasses.dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


FULL = torch.arange(6.0).view(2, 3)
SCALAR = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (FULL, FULL),
        (SCALAR, SCALAR),
        ((SCALAR, FULL), FULL),
        ([None, "text", FULL], FULL),
        ({"loss": SCALAR, "logits": FULL}, FULL),
        (Output(SCALAR, FULL), FULL),
        (Output(None, SCALAR), SCALAR),
        ((torch.arange(3), {"a": (FULL,)}), FULL),
        ([[[[FULL]]]], None),  # deeper than is looked
        (torch.arange(3), None),
        (torch.empty(0, 3), None),
        ((torch.empty(0), SCALAR), SCALAR),
        (None, None),
        ("text", None),
        ((), None),
    ],
)
def test_the_main_tensor_stands_for_an_output(output: Any, expected: Tensor | None) -> None:
    """The first floating tensor with more than one value, wherever it is; a single value else."""
    assert main_tensor(output) is expected


def test_a_packed_sequence_has_its_values_as_output() -> None:
    """What a recurrent layer returns is looked into."""
    packed = pack_padded_sequence(torch.randn(2, 3, 4), torch.tensor([3, 1]), batch_first=True)
    output, _ = nn.LSTM(4, 5, batch_first=True)(packed)
    assert main_tensor(output) is output.data


class Summing(nn.Module):
    """Its output is a summand."""

    def forward(self, x: Any) -> Any:
        return x


def test_an_output_that_is_a_summand_is_noted() -> None:
    """It has a row without numbers."""
    model = nn.Sequential(nn.Identity(), Summing())
    store, notes = Store(), []
    names = module_names({"": model}, lambda prefix, name: name, lambda name: True)
    found = ModuleTap(names, store, unguarded, lambda source, text: notes.append((source, text)))
    with alone() as make:
        found.arm(True)
        model(make(torch.ones(2, 3), "partial"))
        found.disarm()
    rows = rows_of([store.activations.reading()])
    assert len(rows) == 2
    assert all(statistics(row[None])[0][0] != statistics(row[None])[0][0] for row in rows.values())
    assert notes and all(source == "activations" and "summand" in text for source, text in notes)
