"""From what a loop did to a record: every number against numpy in float64, on every lane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from driven import EVERYTHING, Driven, values
from torch import Tensor, nn

from gradtrace.assemble.assembler import Assembler
from gradtrace.handover import handoff
from gradtrace.handover.step import LateLog, Step
from gradtrace.measure import parameters
from gradtrace.measure.reading import Pending
from gradtrace.measure.rows import Positions
from gradtrace.records import ACTIVATION_COLUMNS, MOMENT_COLUMNS, Array, LayerTable, StepRecord
from gradtrace.sampling import Sampling


@pytest.fixture(params=["cpu", "far", "accelerator"])
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How values travel: read where they are, through a ring, or measured as on an accelerator."""
    name: str = request.param
    if name != "cpu":
        monkeypatch.setattr(handoff, "_is_far", lambda tensor: True)
    if name == "accelerator":
        monkeypatch.setattr(parameters, "_kind", lambda tensor: parameters._FOREACH)
    return name


def moments(x: Array) -> dict[str, float]:
    """The columns of a layer by their definitions."""
    with np.errstate(all="ignore"):
        return {
            "norm": math.sqrt(float(np.sum(x * x))),
            "mean": float(np.mean(x)),
            "std": float(np.std(x)),
            "max_abs": float(np.max(np.abs(x))),
            "zero_fraction": float(np.mean(x == 0)),
            "nonfinite": float(np.sum(~np.isfinite(x))),
            "min": float(np.min(x)),
            "max": float(np.max(x)),
        }


def check_table(
    table: LayerTable | None, truth: dict[str, Array], columns: tuple[str, ...] = MOMENT_COLUMNS
) -> None:
    assert table is not None
    assert table.names == tuple(truth) and table.columns == columns
    assert table.values.dtype == np.float64
    for name, x in truth.items():
        expected = moments(x)
        for column in columns:
            got = table[name, column]
            assert got == pytest.approx(expected[column], rel=1e-4, abs=1e-7), (name, column)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 70), nn.ReLU(), nn.Linear(70, 3))


def gradients(of: nn.Module) -> dict[str, Array]:
    return {n: values(p.grad) for n, p in of.named_parameters() if p.grad is not None}


def weights(of: nn.Module) -> dict[str, Array]:
    return {n: values(p) for n, p in of.named_parameters()}


def total(arrays: dict[str, Array]) -> float:
    return math.sqrt(sum(float(np.sum(x * x)) for x in arrays.values()))


def loss_of(net: nn.Module, seed: int, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    output: Tensor = net(torch.randn(6, 5, generator=generator))
    return output.square().mean() * size


def test_a_step_in_numbers(lane: str) -> None:
    """Losses, gradients before the clip, weights, updates, clip, lr, logs of some micro-batches."""
    net = model()
    groups: list[dict[str, Any]] = [
        {"params": net[0].parameters()},
        {"params": net[2].parameters(), "lr": 0.3},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    spent = iter([0.0, 0.25, 1.0, 1.5])
    driven = Driven(net, overhead=lambda: next(spent))
    truth: list[dict[str, Any]] = []
    for k in range(3):
        net.zero_grad()
        losses = []
        for micro in range(k + 1):
            driven.batch(10 * k + micro)
            loss = loss_of(net, 10 * k + micro, 20.0)
            losses.append(float(loss.detach()))
            driven.backward(loss)
        driven.collector.log({"plain": 0.5 * k, "tensor": torch.tensor(float(k))})
        told: dict[str, Any] = {"losses": losses, "gradients": gradients(net)}
        driven.clip_norm(0.5)
        told |= {"after": total(gradients(net)), "weights": weights(net)}
        driven.step(optimizer)
        told["moved"] = {n: x - told["weights"][n] for n, x in weights(net).items()}
        truth.append(told)
    records = driven.records()
    assert [r.step for r in records] == [0, 1, 2]
    assert [r.overhead for r in records] == [0.25, 0.75, 0.5]
    assert driven.notes == []
    for k, (record, told) in enumerate(zip(records, truth, strict=True)):
        check_step(record, told, k)


def check_step(record: StepRecord, told: dict[str, Any], k: int) -> None:
    assert list(record.losses) == pytest.approx(told["losses"], rel=1e-6)
    assert record.loss == pytest.approx(np.mean(told["losses"]), rel=1e-6)
    assert [part.loss for part in record.parts] == list(record.losses)
    assert [[b.sample_ids for b in part.batches] for part in record.parts] == [
        [(10 * k + micro,)] for micro in range(k + 1)
    ]
    assert record.lr == (0.1, 0.3) and record.rank == 3 and not record.skipped
    assert record.logged == {"plain": 0.5 * k, "tensor": float(k)}
    before = total(told["gradients"])
    assert record.grad_norm == pytest.approx(before, rel=1e-5)
    clip = record.clip
    assert clip is not None and (clip.kind, clip.threshold, clip.calls) == ("norm", 0.5, 1)
    assert clip.norm_before == pytest.approx(before, rel=1e-5)
    assert clip.norm_after == pytest.approx(told["after"], rel=1e-5)
    assert clip.clipped == (before > 0.5)
    check_table(record.gradients, told["gradients"])
    check_table(record.weights, told["weights"])
    assert record.updates is not None
    for name, moved in told["moved"].items():
        size = math.sqrt(float(np.sum(moved * moved)))
        assert record.updates[name, "norm"] == pytest.approx(size, rel=1e-3)
        ratio = size / moments(told["weights"][name])["norm"]
        assert record.updates[name, "ratio"] == pytest.approx(ratio, rel=1e-3)
    histograms = record.histograms
    assert histograms is not None and histograms.names == tuple(told["gradients"])
    for at, x in enumerate(told["gradients"].values()):
        assert int(histograms.counts[at].sum()) == x.size


def test_a_loss_scale_is_taken_out_of_every_number(lane: str) -> None:
    """Gradients that are still multiplied by a loss scale are told as they will be used."""
    net, twin = model(), model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    driven = Driven(net)
    loss_of(twin, 1).backward()
    driven.backward(loss_of(net, 1), torch.tensor(2.0**10))
    driven.clip_value(1e30)
    driven.step(optimizer)
    [record] = driven.records()
    truth = gradients(twin)
    check_table(record.gradients, truth)
    assert record.scale == 2.0**10
    assert record.grad_norm == pytest.approx(total(truth), rel=1e-5)
    assert record.loss == pytest.approx(float(loss_of(twin, 1).detach()), rel=1e-6)
    assert record.clip is not None and not record.clip.clipped
    assert record.clip.norm_before == pytest.approx(total(truth), rel=1e-5)
    assert record.clip.norm_after == pytest.approx(total(truth), rel=1e-5)
    assert record.remarks == ("still scaled",)


def test_values_that_are_not_finite_are_counted(lane: str) -> None:
    """NaN and Inf in one layer: its count is exact, the others' numbers are their own."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    driven = Driven(net)

    def spoilt(gradient: Tensor) -> Tensor:
        bad = gradient.clone()
        bad[0, :3] = math.nan
        bad[1, 0] = math.inf
        return bad

    weight = net[2].weight
    assert isinstance(weight, Tensor)
    weight.register_hook(spoilt)
    driven.backward(loss_of(net, 2))
    driven.step(optimizer)
    [record] = driven.records()
    assert record.gradients is not None
    assert record.gradients.column("nonfinite").tolist() == [0, 0, 4, 0]
    assert record.gradients["0.weight", "norm"] == pytest.approx(
        moments(gradients(net)["0.weight"])["norm"], rel=1e-5
    )
    assert record.grad_norm is not None and not math.isfinite(record.grad_norm)


def test_modules_that_ran_have_a_row(lane: str) -> None:
    """Activations and output gradients: min and max too, pieces of a step added up."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    driven = Driven(net)
    first, second, late = torch.randn(4, 3), torch.randn(50) + 2, torch.randn(4, 3)
    driven.collector.outputs.module_names += ["never", "fc", "head"]
    with torch.no_grad():
        driven.collector.outputs.activations.add(1, first)
        driven.collector.outputs.activations.add(2, second)
        driven.collector.outputs.activations.add(1, late)
        driven.collector.outputs.output_gradients.add(2, second)
    driven.backward(loss_of(net, 3))
    driven.step(optimizer)
    [record] = driven.records()
    both = np.concatenate([values(first), values(late)])
    check_table(record.activations, {"fc": both, "head": values(second)}, ACTIVATION_COLUMNS)
    check_table(record.output_gradients, {"head": values(second)})


def test_what_is_not_due_is_none() -> None:
    """A step that measures nothing still has its loss, its batches and its lr."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    driven = Driven(net, Sampling(gradients=0, activations=0, updates=0, first=0))
    batch = driven.batch(7)
    loss = loss_of(net, 4)
    driven.backward(loss)
    driven.step(optimizer)
    [record] = driven.records()
    assert record.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert record.batches[0].ordinal == batch.ordinal and record.lr == (0.1,)
    tables = (record.gradients, record.weights, record.updates, record.activations)
    assert tables == (None,) * 4 and record.grad_norm is None and record.histograms is None


def test_one_clip_over_everything_gives_the_norm(lane: str) -> None:
    """Where no gradient is measured, an L2 clip of all trained parameters tells their norm."""
    net = model()
    net[0].bias.requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    driven = Driven(net, Sampling(gradients=0, activations=0, updates=0, first=0))
    norms = []
    for limit, parameters_ in ((1e-3, trained), (math.inf, trained), (1e-3, trained[:1])):
        net.zero_grad()
        driven.backward(loss_of(net, 5))
        norms.append(total(gradients(net)))
        driven.clip_norm(limit, parameters_)
        driven.step(optimizer)
    whole, measured, part = driven.records()
    assert whole.grad_norm == pytest.approx(norms[0], rel=1e-5) and whole.clip is not None
    assert measured.grad_norm == pytest.approx(norms[1], rel=1e-5) and measured.clip is None
    assert part.grad_norm is None and part.clip is not None


def test_meta_has_names_and_no_numbers() -> None:
    """On the meta device a record says what ran, and claims no value."""
    net = model().to("meta")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    driven = Driven(net)
    for _ in range(2):
        driven.batch(1)
        driven.backward(net(torch.ones(2, 5, device="meta")).square().mean())
        driven.clip_norm(0.5)
        driven.step(optimizer)
    first, _ = driven.records()
    assert (first.loss, first.grad_norm, first.clip, first.histograms) == (None,) * 4
    assert first.losses == () and [part.loss for part in first.parts] == [None]
    assert [b.sample_ids for b in first.parts[0].batches] == [(1,)]
    assert first.lr == (0.1,)
    for table in (first.gradients, first.weights, first.updates):
        assert table is not None and table.names == tuple(weights_of(net))
        assert np.isnan(table.values).all()


def weights_of(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_parameters()]


def test_seconds_are_between_steps() -> None:
    """A step's seconds are those since the step before; the first has none."""
    assembler = Assembler()
    due = EVERYTHING.due(0)
    records = [assembler.record(Step(due, ended=time)) for time in (100.0, 100.5, 102.0)]
    assert [record.seconds for record in records] == [None, 0.5, 1.5]


def test_a_step_the_scaler_kept_is_skipped() -> None:
    """A flag that the scaler set on the optimizer's own device counts as well as its word."""
    due = EVERYTHING.due(0)
    flags = [Pending(torch.tensor(0.0)), Pending(torch.tensor(1.0))]
    for flag in flags:
        assert flag.tensor is not None
        flag.arrived(values(flag.tensor))
    assembler = Assembler()
    assert [
        assembler.record(step).skipped
        for step in (
            Step(due),
            Step(due, skipped=True),
            Step(due, found_inf=flags[:1]),
            Step(due, found_inf=flags),
        )
    ] == [False, True, False, True]


def test_late_values_are_plain_floats() -> None:
    """What was logged late is known once it was handed over."""
    queue: handoff.Handoff[LateLog] = handoff.Handoff()
    queue.put(LateLog.of({"a": 1, "b": torch.tensor(2.5)}))
    [log] = queue.take()
    assert Assembler().late(log) == {"a": 1.0, "b": 2.5}


def test_histograms_that_fail_cost_nothing_else() -> None:
    """The record is whole without them; without anybody to tell, the error comes out."""
    failures: list[str] = []
    step = driven_step()
    for _, readings in step.histograms:
        for reading in readings:
            reading._decode = broken
    record = Assembler(lambda source, error: failures.append(f"{source}: {error}")).record(step)
    assert record.histograms is None and record.gradients is not None
    assert failures == ["the assembly of histograms: on purpose"]
    with pytest.raises(ValueError, match="on purpose"):
        Assembler().record(step)


def broken(arrays: object) -> Any:
    raise ValueError("on purpose")


def driven_step() -> Step:
    net = model()
    driven = Driven(net)
    driven.backward(loss_of(net, 6))
    driven.step(torch.optim.SGD(net.parameters(), lr=0.1))
    [step] = driven.taken()
    assert isinstance(step, Step)
    return step


def test_histograms_of_a_part_are_none() -> None:
    """Histograms that miss a layer whose gradient was read are left out as a whole."""
    step = driven_step()
    whole = Assembler().record(step).histograms
    assert whole is not None and len(whole.names) == 4
    [(_, [reading])] = step.histograms
    decode = reading._decode

    def without_the_first(arrays: Sequence[Array]) -> tuple[Positions, Array]:
        positions, rows = decode(arrays)
        return positions[1:], rows[1:]

    reading._decode = without_the_first
    assert Assembler().record(step).histograms is None
