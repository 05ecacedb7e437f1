"""Every column of every table against a float64 computation of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import truth
from gradients import CASES, Holder, noise, one_step
from torch import Tensor, nn

from gradtrace import LayerTable, Sampling, gradtrace

EVERYTHING = Sampling(activations=1, updates=1)


def compare(table: LayerTable, name: str, tensor: Tensor) -> None:
    truth.compare(table.columns, table.values[table.names.index(name)], tensor)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("case", CASES)
def test_gradient_statistics_equal_the_truth(case: str) -> None:
    """Each statistic of a gradient equals a float64 computation, whatever its type and layout."""
    gradient = CASES[case]()
    trace = one_step(Holder({"w": gradient}))
    table = trace.steps[0].gradients
    assert table is not None
    compare(table, "w", gradient)


def test_all_kinds_at_once_do_not_disturb_each_other() -> None:
    """Layers of all types and sizes measured in one step keep their own numbers."""
    gradients = {f"w_{name}": make() for name, make in CASES.items()}
    trace = one_step(Holder(gradients))
    table = trace.steps[0].gradients
    assert table is not None
    for name, gradient in gradients.items():
        compare(table, name, gradient)


def test_many_small_layers_fill_several_blocks() -> None:
    """A thousand small layers are told apart when one block cannot hold them."""
    gradients = {f"w{i}": noise(1 + i % 5, 1 + i * 7 % 600) for i in range(1000)}
    trace = one_step(Holder(gradients))
    table = trace.steps[0].gradients
    assert table is not None
    for name in ("w0", "w1", "w499", "w998", "w999"):
        compare(table, name, gradients[name])


def test_grad_norm_is_the_norm_of_all_gradients() -> None:
    """The global norm is the L2 norm over all parameters in float64."""
    gradients = {f"w{i}": noise(100 + i, 300) for i in range(5)}
    trace = one_step(Holder(gradients))
    want = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    assert trace.steps[0].grad_norm == pytest.approx(want, rel=1e-6)


def test_a_missing_gradient_is_a_row_of_nan() -> None:
    """A parameter without a gradient is listed as not measured, never as zero."""
    model = Holder({"w": noise(3, 3)})
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    table = one_step(model).steps[0].gradients
    assert table is not None and table.names == ("w", "unused")
    assert np.isnan(table.values[1]).all()


def test_frozen_layers_appear_once_they_are_trained() -> None:
    """A layer that is unfrozen in mid-run is measured from then on."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        for k in range(4):
            if k == 2:
                model[0].requires_grad_(True)
            optimizer.zero_grad()
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
    names = [s.gradients.names for s in trace.steps if s.gradients is not None]
    assert names[:2] == [("1.weight", "1.bias")] * 2
    assert names[2:] == [("0.weight", "0.bias", "1.weight", "1.bias")] * 2
    last = trace.steps[-1].gradients
    assert last is not None and not np.isnan(last.column("norm")).any()


def test_parameters_added_later_are_found() -> None:
    """A layer that joins the model and an optimizer in mid-run is measured from then on."""
    model = nn.ModuleDict({"a": nn.Linear(4, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        for k in range(4):
            if k == 2:
                model["b"] = nn.Linear(4, 4)
                optimizer.add_param_group({"params": list(model["b"].parameters())})
            x = torch.randn(3, 4)
            for layer in model.values():
                x = layer(x)
            optimizer.zero_grad()
            x.sum().backward()
            optimizer.step()
    last = trace.steps[-1].gradients
    assert last is not None and "b.weight" in last.names
    assert last["b.weight", "norm"] > 0


def test_tied_weights_count_once() -> None:
    """A weight used under two names is one row, and counts once in the global norm."""
    a, b = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
    b.weight = a.weight
    model = nn.Sequential(a, b)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        model(torch.randn(2, 5)).sum().backward()
        grad = a.weight.grad
        assert grad is not None
        want = float(grad.double().norm())
        optimizer.step()
    record = trace.steps[0]
    assert record.gradients is not None and record.gradients.names == ("0.weight",)
    assert record.grad_norm == pytest.approx(want, rel=1e-6)


def test_gradients_are_read_before_clipping() -> None:
    """The table and the global norm show gradients as backward left them."""
    model = nn.Linear(10, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        for _ in range(3):
            optimizer.zero_grad()
            (model(torch.randn(4, 10)).square().sum() * 100).backward()
            want = [float(p.grad.double().norm()) for p in model.parameters()]  # type: ignore[union-attr]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            table = None
    table = trace.steps[-1].gradients
    assert table is not None
    assert table.column("norm") == pytest.approx(want, rel=1e-6)
    assert trace.steps[-1].grad_norm == pytest.approx(math.hypot(*want), rel=1e-6)


def test_amp_gradients_are_unscaled() -> None:
    """Under a GradScaler the numbers are those of the loss, not of the scaled loss."""
    for fused in (False, True):
        for unscale in (False, True):
            torch.manual_seed(0)
            model = nn.Linear(6, 3)
            reference = nn.Linear(6, 3)
            reference.load_state_dict(model.state_dict())
            x = torch.randn(5, 6)
            reference(x).square().mean().backward()
            optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
            with gradtrace(model, directory=None) as trace:
                loss = model(x).square().mean()
                scaler.scale(loss).backward()
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            record = trace.steps[0]
            assert record.gradients is not None and record.scale == 2.0**12
            assert record.loss == pytest.approx(float(loss.detach()))
            for name, parameter in reference.named_parameters():
                assert parameter.grad is not None
                compare(record.gradients, name, parameter.grad)


def test_weights_and_updates_equal_the_truth() -> None:
    """Weights are those before the step, updates the difference a step makes, exactly."""
    model = nn.Sequential(nn.Linear(300, 200), nn.LayerNorm(200), nn.Linear(200, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = {}
    with gradtrace(model, directory=None, sampling=EVERYTHING) as trace:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 300)).square().sum().backward()
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            optimizer.step()
    record = trace.steps[-1]
    assert record.weights is not None and record.updates is not None
    for name, parameter in model.named_parameters():
        compare(record.weights, name, before[name])
        moved = float((parameter.detach().double() - before[name].double()).norm())
        assert record.updates[name, "norm"] == pytest.approx(moved, rel=1e-5)
        size = float(before[name].double().norm())
        if size:
            assert record.updates[name, "ratio"] == pytest.approx(moved / size, rel=1e-5)


def test_activations_and_output_gradients_equal_the_truth() -> None:
    """Outputs of modules and the gradients arriving at them, before in-place changes."""
    seen: dict[str, Tensor] = {}
    arrived: dict[str, Tensor] = {}
    layers = nn.Sequential(
        nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 900), nn.Dropout(0.5), nn.Linear(900, 4)
    )
    x = torch.randn(400, 30)
    state = torch.get_rng_state()
    value: Tensor = x
    outputs = {}
    for i, layer in enumerate(layers):
        value = layer(value)
        value.retain_grad()
        outputs[str(i)] = value
    value.square().mean().backward()
    for name, output in outputs.items():
        assert output.grad is not None
        seen[name], arrived[name] = output.detach(), output.grad
    layers.zero_grad()
    torch.set_rng_state(state)
    layers[1] = nn.ReLU(inplace=True)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    with gradtrace(layers, directory=None, sampling=EVERYTHING) as trace:
        layers(x).square().mean().backward()
        optimizer.step()
    record = trace.steps[0]
    assert record.activations is not None and record.output_gradients is not None
    assert record.activations.names == ("0", "1", "2", "3", "4")
    for name in record.activations.names:
        compare(record.activations, name, seen[name])
        compare(record.output_gradients, name, arrived[name])


def test_micro_batches_are_one_population() -> None:
    """With accumulation, an activation row is over all micro-batches of the step."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    parts = [torch.randn(2, 3), torch.randn(5, 3) * 3, torch.randn(1, 3)]
    with gradtrace(model, directory=None, sampling=EVERYTHING) as trace:
        for part in parts:
            model(part).sum().backward()
        optimizer.step()
    table = trace.steps[0].activations
    assert table is not None
    compare(table, "Linear", model(torch.cat(parts)))


def test_checkpointed_modules_count_once() -> None:
    """A recomputed forward adds nothing to what the first one showed, in both variants."""
    from torch.utils.checkpoint import checkpoint

    for variant in (True, False):
        inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        model = nn.ModuleList([nn.Linear(6, 6), inner])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        x = torch.randn(7, 6)
        with gradtrace(model, directory=None, sampling=EVERYTHING) as trace:
            for _ in range(2):
                checkpoint(inner, model[0](x), use_reentrant=variant).sum().backward()
            optimizer.step()
        table = trace.steps[0].activations
        assert table is not None
        twice = torch.cat([inner[0](model[0](x))] * 2)
        compare(table, "1.0", twice)


def test_a_name_is_measured_only_when_selected() -> None:
    """Globs choose layers; exclude wins over include."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampling = Sampling(activations=1, updates=1, include=("0*", "1*"), exclude=("*.bias", "1"))
    with gradtrace(model, directory=None, sampling=sampling) as trace:
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    record = trace.steps[0]
    assert record.gradients is not None and record.activations is not None
    assert record.gradients.names == ("0.weight", "1.weight")
    assert record.activations.names == ("0",)
