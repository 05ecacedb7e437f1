"""The watched parameters: their names, where they stand, and the plans to measure some of them."""

from __future__ import annotations

import gc
import math
import random
import weakref
from typing import Any

import pytest
import torch
from gradients import NAN, any_tensor, noise
from ranks import alone
from readings import decoded
from torch import Tensor, nn
from truth import compare, rows_of

from gradtrace import Sampling
from gradtrace.measure import parameters as module
from gradtrace.measure.parameters import Parameters, clean_name, qualified
from gradtrace.measure.rows import NORM, ROW, N, statistics
from gradtrace.records import MOMENT_COLUMNS


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def of(model: nn.Module, **sampling: Any) -> Parameters:
    return Parameters({"": model}, Sampling(**sampling))


def three() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_wrappers_leave_no_part_in_a_name() -> None:
    """What torch.compile, FSDP and checkpointing put in front is left out, wherever it stands."""
    name = "_orig_mod.a._checkpoint_wrapped_module.b._fsdp_wrapped_module.weight"
    assert clean_name(name) == "a.b.weight"
    assert clean_name("plain.weight") == "plain.weight"
    assert qualified("", "a.weight") == "a.weight"
    assert qualified("critic", "_orig_mod.weight") == "critic.weight"
    assert qualified("critic", "") == "critic"


def test_names_stand_in_the_models_order() -> None:
    """With the key of each model in front; a tied parameter has its first name."""
    a, b = three(), nn.Linear(4, 2)
    b.register_parameter("weight", a.get_parameter("2.weight"))
    found = Parameters({"a": a, "b": b}, Sampling())
    assert found.names == ("a.0.weight", "a.0.bias", "a.2.weight", "a.2.bias", "b.bias")
    assert [found.index[id(tensor)] for tensor in found.tensors] == list(range(5))
    assert found.positions([b.weight, nn.Parameter(noise(2)), b.bias, 7]) == (2, 4)


def test_only_what_is_selected_is_watched() -> None:
    """Globs are over full names."""
    found = Parameters({"m": three()}, Sampling(include=("m.*",), exclude=("*.bias",)))
    assert found.names == ("m.0.weight", "m.2.weight")


def test_new_parameters_come_last_and_old_ones_stay() -> None:
    """Positions of what was known do not change; what leaves the model is watched no longer."""
    model = nn.ModuleDict({"b": nn.Linear(2, 2)})
    found = of(model)
    assert not found.refresh()
    model["a"] = nn.Linear(2, 3)
    gone = model.pop("b")
    assert found.refresh()
    assert found.names == ("b.weight", "b.bias", "a.weight", "a.bias")
    assert found.positions([gone.weight, model["a"].weight]) == (2,)
    assert found.replaced == {0, 1}
    assert not found.refresh()
    model["b"] = gone
    assert found.refresh() and found.positions([gone.weight]) == (0,)
    assert len(found.names) == 4


def test_a_replaced_parameter_keeps_name_and_position() -> None:
    """Whatever its shape; the old tensor is let go, and its number in memory means nothing."""
    model = three()
    found = of(model)
    names, first = found.names, model[0]
    assert isinstance(first, nn.Linear)
    old = weakref.ref(first.weight)
    first.weight = nn.Parameter(torch.randn(5, 3))
    assert found.refresh() and not found.refresh()
    assert found.names == names and found.replaced == {0}
    assert found.tensors[0] is first.weight and found.positions([first.weight]) == (0,)
    gc.collect()
    assert old() is None
    assert found.holds([first.weight, nn.Parameter(torch.zeros(1))], [0, None])
    assert not found.holds([nn.Parameter(torch.zeros(1))], [0])


def test_a_parameter_that_is_renamed_is_the_same() -> None:
    """A wrapper that comes later puts a prefix before every name: the first ones stay."""
    inner = nn.Linear(2, 2)
    model = nn.Sequential(inner)
    found = of(model)
    model[0] = nn.Sequential(inner)  # was "0.weight", is "0.0.weight"
    assert not found.refresh()
    assert found.names == ("0.weight", "0.bias") and found.positions([inner.weight]) == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_any_selection_is_measured_right(seed: int) -> None:
    """Tensors of all kinds under their own positions, small, large and sparse."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    tensors = [any_tensor(chance) for _ in range(8)]
    tensors += [noise(200, 300), noise(20, 6).to_sparse(), noise(3, dtype=torch.complex64)]
    tensors = [tensor for tensor in tensors if tensor.numel()]
    found = of(three())
    positions = sorted(chance.sample(range(100), len(tensors)))
    for _ in range(2):  # by a new plan, and by the same again
        rows = rows_of(found.read(positions, tensors, full=True))
        assert list(rows) == positions
        for position, tensor in zip(positions, tensors, strict=True):
            compare(MOMENT_COLUMNS, statistics(rows[position][None])[0], tensor)


def test_an_accelerators_tensors_are_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense ones in a few launches, sparse ones one by one: the same on a CPU taken for one."""
    kind_of = module._kind

    def kind(tensor: Tensor) -> int:
        known = kind_of(tensor)
        return module._FOREACH if known != module._NONE and not tensor.is_sparse else known

    monkeypatch.setattr(module, "_kind", kind)
    tensors = [noise(5), noise(300, 200), noise(20, 6).to_sparse(), noise(7, 7).half()]
    rows = rows_of(of(three()).read([1, 4, 6, 9], tensors, full=True))
    assert list(rows) == [1, 4, 6, 9]
    for row, tensor in zip(rows.values(), tensors, strict=True):
        compare(MOMENT_COLUMNS, statistics(row[None])[0], tensor)


def test_each_kind_of_tensor_has_its_plan() -> None:
    """By device, size and layout; what would wait for a device has none."""
    small, large = noise(5, 5), noise(300, 200)
    index = torch.zeros(1, 2, dtype=torch.long, device="meta")
    known = torch.sparse_coo_tensor(index, torch.ones(2, device="meta"), (4,))
    known = known._coalesced_(True)
    assert module._kind(small) == module._BLOCK
    assert module._kind(large) == module._kind(small.to_sparse()) == module._CHUNK
    assert module._kind(small.to("meta")) == module._kind(large.to("meta")) == module._FOREACH
    assert module._kind(known) == module._CHUNK
    waiting = torch.sparse_coo_tensor(index, torch.ones(2, device="meta"), (4,))
    assert module._kind(waiting) == module._NONE
    assert module._kind(torch.arange(3)) == module._NONE


def test_a_plan_that_no_longer_fits_is_made_anew() -> None:
    """A gradient that turns sparse, or grows small, is measured right at the same position."""
    found = of(three())
    large, small = noise(200, 300), noise(2, 2)
    for tensor in (large, large.to_sparse(), small, small.to_sparse(), large, small, large):
        rows = rows_of(found.read([3], [tensor], full=True))
        compare(MOMENT_COLUMNS, statistics(rows[3][None])[0], tensor)


def test_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that changes its selection at every step keeps few plans."""
    monkeypatch.setattr(module, "_MOST_PLANS", 4)
    found = of(three())
    for position in range(50):
        found.read([position], [noise(3)], full=True)
        assert len(found._plans) <= 4


def test_nothing_asked_is_nothing_read() -> None:
    """Without positions there is no plan and no reading; a tensor of whole numbers has none."""
    found = of(three())
    assert found.read([], [], full=True) == [] and found._plans == {}
    assert found.read([0], [torch.arange(3)], full=True) == []


def test_only_the_norm_when_only_that_is_asked() -> None:
    """Of small and of large tensors; all else is NaN, but for the number of values."""
    tensors = [noise(5), noise(300, 200)]
    rows = rows_of(of(three()).read([0, 1], tensors, full=False, norm_only=True))
    for position, tensor in enumerate(tensors):
        row = rows[position]
        assert row[NORM] == pytest.approx(float(tensor.double().norm()), rel=1e-6)
        assert row[N] == tensor.numel()
        assert all(math.isnan(row[c]) for c in range(len(ROW)) if c not in (N, NORM))


def test_missing_gradients_are_left_out() -> None:
    """What is read, counted and copied is what has a gradient."""
    model = three()
    found = of(model)
    gradient = noise(4, 3)
    model[0].weight.grad = gradient
    readings, present = found.read_gradients([0, 1, 2], full=True)
    assert present == [0]
    compare(MOMENT_COLUMNS, statistics(rows_of(readings)[0][None])[0], gradient)
    [counted] = found.count_gradients([0, 1, 2])
    positions, rows = decoded(counted)
    assert positions.tolist() == [0] and rows[0, 1:].sum() == 12
    assert found.count_gradients([1, 2]) == []
    copies = found.copy_gradients([0, 1])
    assert copies[0] is not None and copies[1] is None
    model[0].weight.grad.mul_(5)
    assert not torch.equal(copies[0], gradient) and torch.equal(copies[0] * 5, gradient)


def test_the_cosine_is_that_of_all_values() -> None:
    """Between one long vector before and one after, in float64; of nothing there is none."""
    model = three()
    found = of(model)
    assert found.cosine([0, 1], found.copy_gradients([0, 1])) is None
    for parameter in model.parameters():
        parameter.grad = noise(*parameter.shape)
    model[0].bias.grad = noise(4).to_sparse()  # cannot be compared, and is not
    before = found.copy_gradients(range(4))
    assert before[1] is None
    old = torch.cat([b.double().ravel() for b in before if b is not None])
    nn.utils.clip_grad_value_([p for p in model.parameters() if p is not model[0].bias], 0.3)
    new = torch.cat([_grad(found.tensors[i]).double().ravel() for i in (0, 2, 3)])
    cosine = found.cosine(range(4), before)
    assert cosine is not None and cosine.dim() == 0
    assert float(cosine) == pytest.approx(float(old @ new / (old.norm() * new.norm())), rel=1e-5)
    assert float(cosine) < 0.999


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_a_plan_made_in_inference_mode_serves_outside() -> None:
    """Its buffers are no inference tensors, which autograd would refuse."""
    found = of(three())
    tensors = [noise(5), noise(300, 200).bfloat16()]
    with torch.inference_mode():
        found.read([0, 1], tensors, full=True)
    tensors[0][2] = NAN
    rows = rows_of(found.read([0, 1], tensors, full=True))
    compare(MOMENT_COLUMNS, statistics(rows[1][None])[0], tensors[1])
    compare(MOMENT_COLUMNS, statistics(rows[0][None])[0], tensors[0])


def test_an_accumulator_shares_the_working_memory() -> None:
    """Every one it gives works with the same buffers, and keeps its own sums."""
    found = of(three())
    one, other = found.accumulator(), found.accumulator()
    with torch.no_grad():
        one.add(0, noise(300).bfloat16())
        other.add(1, noise(300).bfloat16())
    assert list(rows_of([one.reading()])) == [0] and list(rows_of([other.reading()])) == [1]
    assert one._scratch is other._scratch is found._scratch


def test_gradients_that_are_summands_are_left_out() -> None:
    """They have no numbers, no histogram and no copy, and are told apart; the others have all."""
    model = nn.Linear(2, 2)
    found = of(model)
    with alone() as make:
        weight, bias = make(noise(2, 2), "shard"), make(noise(2), "replicate")
        model.weight, model.bias = nn.Parameter(weight), nn.Parameter(bias)
        found.refresh()
        model.weight.grad = make(noise(2, 2), "shard")
        model.bias.grad = make(noise(2), "partial")
        readings, present = found.read_gradients((0, 1), full=True)
        assert present == [0, 1] and set(rows_of(readings)) == {0} and found.partial == {1}
        [counted] = found.count_gradients((0, 1))
        assert decoded(counted)[0].tolist() == [0]
        first, second = found.copy_gradients((0, 1))
        assert type(first) is Tensor and second is None
