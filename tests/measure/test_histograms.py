"""The histograms of gradients against a float64 computation of their own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradients import CASES, Holder, noise, one_step
from readings import decoded
from torch import Tensor, nn
from truth import values_of

from gradtrace import LayerHistograms, Sampling, Trace, gradtrace, load_run
from gradtrace.assemble import assembler, readings
from gradtrace.collect import measuring
from gradtrace.handover import handoff
from gradtrace.handover.step import Step
from gradtrace.measure import histograms as measure
from gradtrace.measure import parameters
from gradtrace.measure.chunks import Scratch
from gradtrace.measure.histograms import read_histograms
from gradtrace.measure.reading import Pending, Reading
from gradtrace.records.histograms import BINS, EDGES, OCTAVES, SIDE, Counts, Floats, in_use

ALWAYS = Sampling(histograms=1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def counted(values: Floats, limit: float) -> Counts:
    """The counts of a grid, from numpy's own histograms of the magnitudes."""
    edges = limit * EDGES[SIDE + 1 :]
    values = values[np.isfinite(values)]
    above = np.histogram(values[values > 0], edges)[0]
    below = np.histogram(-values[values < 0], edges)[0]
    around = np.count_nonzero(np.abs(values) < edges[0])
    return np.concatenate([below[::-1], [around], above])


def compare(histograms: LayerHistograms | None, name: str, values: Floats) -> None:
    assert histograms is not None
    at = histograms.names.index(name)
    counts, limit = histograms.counts[at], float(histograms.limits[at])
    finite = values[np.isfinite(values)]
    assert counts.sum() == finite.size
    assert counts.tolist() == counted(values, limit).tolist()
    largest = np.abs(finite).max(initial=0.0)
    assert largest < limit
    if largest > 1e-30:  # the grid reaches no further than it must
        assert limit <= 2 * largest


def last_of(trace: Trace) -> LayerHistograms:
    found = trace.steps[-1].histograms
    assert found is not None
    return found


@pytest.mark.parametrize("case", CASES)
def test_histograms_equal_the_truth(case: str) -> None:
    """Each bin holds what numpy counts in float64, whatever the gradient's type and layout."""
    gradient = CASES[case]()
    compare(last_of(one_step(Holder({"w": gradient}), ALWAYS)), "w", values_of(gradient))


@pytest.mark.parametrize("case", CASES)
def test_the_accelerators_plan_equals_the_truth(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan that never looks at a value, run on CPU tensors, counts the same."""
    monkeypatch.setattr(measure, "_count_on_host", measure._count_on_device)
    gradient = CASES[case]()
    compare(last_of(one_step(Holder({"w": gradient}), ALWAYS)), "w", values_of(gradient))


@pytest.mark.parametrize("scale", [1e-45, 1e-42, 1e-38, 1e-33, 1e-30])
def test_values_near_the_smallest_float_are_counted(scale: float) -> None:
    """Denormal numbers and those just above are in bins that hold them."""
    gradient = (noise(50, 30).double() * scale).float()
    compare(last_of(one_step(Holder({"w": gradient}), ALWAYS)), "w", values_of(gradient))


def test_edges_belong_to_the_bin_further_out() -> None:
    """A magnitude on an edge is in the bin that begins there, on both sides of zero."""
    gradient = torch.tensor([1.0, 1.25, -1.25, 1.75, -2.0, 2.0, 3.9999998, 0.0, -0.0])
    counts, edges = last_of(one_step(Holder({"w": gradient}), ALWAYS))["w"]
    found = {
        (edges[i], edges[i + 1]): n for i, n in enumerate(counts.tolist()) if n and edges[i] > 0
    }
    assert found == {(1, 1.25): 1, (1.25, 1.5): 1, (1.75, 2): 1, (2, 2.5): 1, (3.5, 4): 1}
    found = {(edges[i], edges[i + 1]): n for i, n in enumerate(counts) if n and edges[i + 1] < 0}
    assert found == {(-1.5, -1.25): 1, (-2.5, -2): 1}
    assert counts.sum() == 9


def test_hundreds_of_layers_are_told_apart() -> None:
    """More layers than are counted at once keep their own counts."""
    gradients = {f"w{i}": noise(1 + i % 5, 1 + i % 60) * 2.0 ** (i % 40) for i in range(600)}
    found = last_of(one_step(Holder(gradients), ALWAYS))
    assert found.names == tuple(gradients)
    for name, gradient in gradients.items():
        compare(found, name, values_of(gradient))


def test_types_may_be_mixed() -> None:
    """Small tensors of all floating types, counted together, keep their own counts."""
    types = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float64)
    some = [noise(20, 30).to(dtype) for dtype in types]
    with torch.no_grad():
        readings = read_histograms(range(len(some)), some, Scratch())
    found: dict[int, tuple[float, list[float]]] = {}
    for reading in readings:
        positions, rows = decoded(reading)
        found |= {
            int(p): (row[0], row[1:].tolist()) for p, row in zip(positions, rows, strict=True)
        }
    assert len(found) == len(some)
    for i, tensor in enumerate(some):
        limit, counts = found[i]
        assert counts == counted(values_of(tensor), limit).tolist()


def test_many_small_layers_are_counted_in_several_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors that together exceed the working memory are all counted, once."""
    monkeypatch.setattr(measure, "CHUNK", 2 * measure.SMALL)
    gradients = {f"w{i}": noise(100, 100) * 3.0**i for i in range(7)}
    found = last_of(one_step(Holder(gradients), ALWAYS))
    for name, gradient in gradients.items():
        compare(found, name, values_of(gradient))


def test_layers_without_gradient_have_none() -> None:
    """A parameter without a gradient is left out, its neighbours keep their names."""
    model = Holder({"a": noise(3, 3), "c": noise(4, 4)})
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    found = last_of(one_step(model, ALWAYS))
    assert found.names == ("a", "c")
    with pytest.raises(KeyError, match="no layer 'unused' in these histograms; they have: a, c"):
        found["unused"]


@pytest.mark.parametrize("scale", [2.0**16, 1000.0])
def test_the_loss_scale_is_divided_out(scale: float) -> None:
    """Gradients still multiplied by the AMP scale show at their own size."""
    model = nn.Linear(40, 30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)  # unscales on its own
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with gradtrace(model, directory=None, sampling=ALWAYS) as trace:
        scaler.scale(model(noise(8, 40)).square().mean()).backward()
        assert model.weight.grad is not None
        scaled = values_of(model.weight.grad)
        scaler.step(optimizer)
        scaler.update()
    found = last_of(trace)
    at = found.names.index("weight")
    limit = float(found.limits[at])
    assert found.counts[at].tolist() == counted(scaled, limit * scale).tolist()
    assert limit <= 2 * np.abs(scaled).max() / scale


def test_accumulated_gradients_are_counted_once() -> None:
    """Of several backwards in a step the gradient that the optimizer uses is shown, unclipped."""
    model = nn.Linear(20, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None, sampling=ALWAYS) as trace:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(4):
                model(noise(8, 20)).square().mean().backward()
            assert model.weight.grad is not None
            raw = values_of(model.weight.grad.clone())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
    assert len(trace.steps) == 3
    compare(last_of(trace), "weight", raw)


def test_optimizers_inside_backward_are_counted_too() -> None:
    """Gradients that exist during backward only have their histograms."""
    model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 5))
    seen: dict[str, Floats] = {}
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    names = {p: n for n, p in model.named_parameters()}

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        seen[names[parameter]] = values_of(parameter.grad.clone())  # type: ignore[index]
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(move)
    with gradtrace(model, directory=None, sampling=ALWAYS) as trace:
        for _ in range(3):
            model(noise(8, 20)).square().mean().backward()
    assert set(last_of(trace).names) == set(seen)
    for name, values in seen.items():
        compare(last_of(trace), name, values)


def test_they_are_taken_when_due(tmp_path: Path) -> None:
    """Every so many steps and on the first ones, with the gradients' statistics; else not."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampling = Sampling(gradients=0, histograms=4, activations=0, updates=0, first=2)
    with gradtrace(model, directory=tmp_path, sampling=sampling) as trace:
        for _ in range(11):
            model(noise(8, 4)).square().mean().backward()
            optimizer.step()
    due = [0, 1, 4, 8]
    assert [s.step for s in trace.steps if s.histograms is not None] == due
    assert [s.step for s in trace.steps if s.gradients is not None] == due
    assert trace.path is not None
    table = load_run(trace.path).histograms
    assert table.column("step").to_pylist() == [s for s in due for _ in range(2)]
    assert Sampling().due(0).histograms is False


def test_they_are_left_out_while_many_steps_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A background that cannot keep up costs histograms, never steps, and a note says so."""
    monkeypatch.setattr(measuring, "MOST_WAITING", 0)
    model = Holder({"w": noise(3, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None, sampling=ALWAYS) as trace:
        for _ in range(3):
            optimizer.step()
    assert len(trace.steps) == 3
    assert all(s.histograms is None and s.gradients is not None for s in trace.steps)
    [note] = [note for note in trace.notes if note.source == "histograms"]
    assert "ask for fewer" in note.message


def test_they_come_back_from_disk_equal(tmp_path: Path) -> None:
    """What the run log holds of them is what the records had."""
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=tmp_path, sampling=Sampling(histograms=3)) as trace:
        for _ in range(20):
            optimizer.zero_grad()
            model(noise(8, 30)).square().mean().backward()
            optimizer.step()
    assert trace.path is not None
    run = load_run(trace.path)
    assert list(run.records()) == trace.steps
    rows = run.histograms.to_pylist()
    first = next(row for row in rows if row["layer"] == "2.bias")
    found = trace.steps[0].histograms
    assert found is not None
    counts, edges = in_use(np.asarray(first["counts"]), first["limit"])
    assert [counts.tolist(), edges.tolist()] == [part.tolist() for part in found["2.bias"]]


def test_groups_add_up_exactly() -> None:
    """Layers together are what one tensor of all their values gives, on the widest grid."""
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(300) * 2.0**k for k in (0, -3, 5, -18, -40, 5)]
    with torch.no_grad():
        tensors = [torch.from_numpy(part) for part in [*parts, np.concatenate(parts)]]
        [reading] = read_histograms(range(len(tensors)), tensors, Scratch())
    rows = decoded(reading)[1]
    every = LayerHistograms(
        tuple(map(str, range(len(tensors)))), rows[:, 1:].astype(np.int64), rows[:, 0]
    )
    merged = every.merged(tuple(range(len(parts))))
    assert merged is not None
    assert merged[1] == every.limits[-1]
    assert merged[0].tolist() == every.counts[-1].tolist()
    assert every.merged([]) is None


def test_grids_that_do_not_fit_are_not_merged() -> None:
    """Limits that are not powers of two apart give no sum rather than a wrong one."""
    counts = np.ones((2, BINS), np.int64)
    assert LayerHistograms(("a", "b"), counts, np.array([1.0, 3.0])).merged([0, 1]) is None


def test_the_grid_is_what_it_says() -> None:
    """BINS bins, symmetric, four a factor of 2 and all rising."""
    assert len(EDGES) == BINS + 1
    assert np.all(np.diff(EDGES) > 0) and np.array_equal(EDGES, -EDGES[::-1])
    assert EDGES[-5:].tolist() == [0.5, 0.625, 0.75, 0.875, 1.0]
    assert EDGES[SIDE + 1] == 2.0**-OCTAVES


def test_empty_bins_are_cut_off() -> None:
    """The bins given out end where values end; of nothing the middle one is left."""
    counts = np.zeros(BINS, np.int64)
    assert in_use(counts, 8.0)[0].tolist() == [0]
    counts[[10, SIDE - 30]] = 1
    found, edges = in_use(counts, 8.0)
    assert (len(found), found.sum()) == (SIDE - 39, 2)
    assert (edges[0], edges[-1]) == (8 * EDGES[10], 8 * EDGES[SIDE - 29])


@pytest.mark.parametrize("octaves", [1, 12, 23, 24])
def test_fewer_octaves_leave_a_wider_middle(octaves: int) -> None:
    """Cut to some octaves, the counts are numpy's over the same edges."""
    values = noise(100, 100).double().numpy().ravel() * np.exp2(-np.arange(10_000) / 500)
    counts, edges = in_use(counted(values, 8.0), 8.0, octaves=octaves)
    assert counts.tolist() == np.histogram(values, edges)[0].tolist()
    assert counts.sum() == values.size and len(counts) <= 8 * octaves + 1
    assert 8 * 2.0**-octaves in edges and np.count_nonzero(np.abs(edges) < 8 * 2.0**-octaves) == 0


def test_no_step_of_a_fast_loop_is_left_out() -> None:
    """Small histograms are taken at every step that asks for them, however many steps wait."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = noise(8, 4)
    sampling = Sampling(histograms=10, activations=0, updates=0, first=0)
    with gradtrace(model, directory=None, sampling=sampling) as trace:
        for _ in range(900):  # more than ever waited when the number of steps was the limit
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert trace.notes == []
    assert [s.step for s in trace.steps if s.histograms is not None] == list(range(0, 900, 10))


def test_several_optimizers_share_a_step() -> None:
    """With an optimizer for each part a step has the histograms of all parts or of none."""
    parts = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 2)})
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts.values()]
    sampling = Sampling(histograms=4, activations=0, updates=0, first=0)
    with gradtrace(parts, directory=None, sampling=sampling) as trace:
        for _ in range(12):
            for optimizer, part in zip(optimizers, parts.values(), strict=True):
                optimizer.zero_grad()
                part(noise(3, 4)).square().mean().backward()
                nn.utils.clip_grad_norm_(part.parameters(), 1e-3)
                optimizer.step()
    assert len(trace.steps) == 12
    found = {s.step: s.histograms.names for s in trace.steps if s.histograms is not None}
    assert {0, 4, 8} <= found.keys()
    assert set(found.values()) == {("a.weight", "a.bias", "b.weight", "b.bias")}


def test_a_failure_costs_histograms_only(
    monkeypatch: pytest.MonkeyPatch, internal_errors: list[Exception]
) -> None:
    """When counting fails, or putting counts together, all else of the step is recorded."""

    def broken(*args: object) -> object:
        raise RuntimeError("broken")

    for place in (parameters, assembler):
        name = "read_histograms" if place is parameters else "histograms_of"
        with monkeypatch.context() as patch:
            patch.setattr(place, name, broken)
            model = Holder({"w": noise(30, 3)})
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            every = Sampling(histograms=1, updates=1, activations=0, first=0)
            with gradtrace(model, directory=None, sampling=every) as trace:
                for _ in range(3):
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
        assert len(trace.steps) == 3
        for step in trace.steps:
            assert step.histograms is None and step.clip is not None
            assert step.gradients is not None and step.updates is not None
        assert [str(error) for error in internal_errors] == ["broken"] * 3
        internal_errors.clear()


def no_rows(arrays: object) -> tuple[np.ndarray[Any, Any], Floats]:
    return np.zeros(0, np.intp), np.zeros((0, 1 + BINS))


def test_an_open_step_holds_one_set() -> None:
    """Of many backwards in a step only the newest counts are kept."""
    step = Step(Sampling(histograms=1).due(0))
    for k in range(100):
        step.count([0, 1], [Reading([torch.tensor(k)], no_rows)])
        step.count([2], [])
    assert len(step.histograms) == 2
    other = Step(Sampling(histograms=1).due(0))
    other.count([0, 1, 2], [])
    step.absorb(other)
    assert [positions for positions, _ in step.histograms] == [frozenset({0, 1, 2})]


def test_a_full_ring_costs_histograms_not_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an accelerator's results have no room, the step goes without its histograms."""
    monkeypatch.setattr(
        handoff.Handoff,
        "fits",
        lambda queue, step: sum(cell.tensor.numel() for cell in step.cells()) < 150,
    )
    trace = one_step(Holder({"w": noise(3, 3)}), Sampling(histograms=1, activations=0, updates=0))
    assert len(trace.steps) == 1
    assert trace.steps[0].histograms is None and trace.steps[0].gradients is not None
    assert "histograms" in [note.source for note in trace.notes]


def test_a_loss_scale_of_zero_leaves_no_grid() -> None:
    """A scale that has vanished makes no step fail; its grid is not finite, and is not exported."""
    reading = Reading([], lambda arrays: (np.arange(2, dtype=np.intp), np.ones((2, 1 + BINS))))
    reading.divisor = Pending(torch.zeros(()))
    reading.divisor.arrived(np.zeros(()))
    step = Step(Sampling(histograms=1).due(0), histograms=[(frozenset({0, 1}), [reading])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = readings.histograms_of(step)
    assert all(row[0] == np.inf for row in found.values())


def test_layers_nobody_can_read_are_left_out() -> None:
    """A parameter that stands on the meta device has no counts, rather than wrong ones."""
    found = {0: np.ones(1 + BINS), 2: np.full(1 + BINS, np.nan)}
    kept = readings.layer_histograms(("a", "b", "c"), found)
    assert kept is not None and kept.names == ("a",)
    assert readings.layer_histograms(("a",), {0: np.full(1 + BINS, np.nan)}) is None
