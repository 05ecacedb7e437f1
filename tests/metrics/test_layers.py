"""Which layers exporters show: groups, top layers, globs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gradtrace.metrics.layers import MAX_GROUPS, SHOWN, Layers, LayerSeries, check_layers, group_of
from gradtrace.records import MOMENT_COLUMNS, UPDATE_COLUMNS, LayerTable, StepRecord
from gradtrace.records.histograms import BINS, SIDE, Counts, Floats, LayerHistograms

NAMES = (
    *(f"blocks.{block}.{part}.weight" for block in range(12) for part in ("attn", "mlp")),
    "head.weight",
)
SHAPES = [(2 + at % 3, 5) for at in range(len(NAMES))]
SIZES = [{"name": name, "shape": shape} for name, shape in zip(NAMES, SHAPES, strict=True)]


def record(step: int = 0, names: tuple[str, ...] = NAMES, *, updates: bool = True) -> StepRecord:
    rng = np.random.default_rng(step)
    values = rng.uniform(0.1, 1.0, (len(names), len(MOMENT_COLUMNS)))
    values[:, 0] *= np.arange(1, len(names) + 1)
    moved = rng.uniform(0.1, 1.0, (len(names), 2))
    return StepRecord(
        step=step,
        time=0.0,
        gradients=LayerTable(names, values, MOMENT_COLUMNS),
        updates=LayerTable(names, moved, UPDATE_COLUMNS) if updates else None,
    )


def test_groups_and_top_layers() -> None:
    """13 groups with whole-group values, and the two layers of largest norm with their own."""
    one = record()
    found = LayerSeries(2, SIZES).update(one)
    assert len(found) == 15
    assert one.gradients is not None and one.updates is not None
    norms = dict(zip(NAMES, one.gradients.column("norm"), strict=True))
    top = sorted(norms, key=lambda name: -norms[name])[:2]
    assert {"head", *(f"blocks.{b}" for b in range(12)), *top} == set(found)
    for name in top:
        assert found[name]["grad_norm"] == norms[name]
        assert found[name]["update_ratio"] == one.updates[name, "ratio"]
    mine = [at for at, name in enumerate(NAMES) if name.startswith("blocks.3.")]
    sizes = np.asarray([float(np.prod(SHAPES[at])) for at in mine])
    zeros = one.gradients.column("zero_fraction")[mine]
    moved, ratio = one.updates.column("norm")[mine], one.updates.column("ratio")[mine]
    group = found["blocks.3"]
    assert group["grad_norm"] == pytest.approx(np.hypot(*[norms[NAMES[at]] for at in mine]))
    assert group["zero_fraction"] == pytest.approx((zeros * sizes).sum() / sizes.sum())
    assert group["update_ratio"] == pytest.approx(np.hypot(*moved) / np.hypot(*(moved / ratio)))


def test_the_choice_lasts() -> None:
    """Over 5,000 steps of noise at most three choices of top layers are seen after the first."""
    series = LayerSeries(3, SIZES)
    shown = {
        name for step in range(1500) for name in series.update(record(step)) if "weight" in name
    }
    assert len(shown) <= 3 * 4


def test_globs_choose_exactly() -> None:
    """No groups then; an empty list sends no layers."""
    found = LayerSeries(["blocks.1.*", "head.*"], SIZES).update(record())
    assert set(found) == {"blocks.1.attn.weight", "blocks.1.mlp.weight", "head.weight"}
    assert LayerSeries([], SIZES).update(record()) == {}


def test_series_are_bounded() -> None:
    """Blocks by number where they are few, by first part where many, none where all differ."""
    deep = tuple(f"blocks.{b}.w.weight" for b in range(500))
    assert set(LayerSeries(0).update(record(names=deep))) == {"blocks"}
    flat = tuple(f"layer{b}.weight" for b in range(MAX_GROUPS + 1))
    assert len(LayerSeries(4).update(record(names=flat))) == 4


def test_what_was_not_measured_is_not_sent() -> None:
    """A step without updates has no ratio; one without gradients has nothing."""
    found = LayerSeries(1, SIZES).update(record(updates=False))
    assert all(set(metrics) == {"grad_norm", "zero_fraction"} for metrics in found.values())
    assert LayerSeries(1, SIZES).update(StepRecord(step=0, time=0.0)) == {}


def test_a_group_is_that_of_its_measured_layers() -> None:
    """One layer without a gradient does not hide its group; one that is not finite does."""
    one = record()
    assert one.gradients is not None and one.updates is not None
    at = NAMES.index("blocks.3.attn.weight")
    values, moved = one.gradients.values.copy(), one.updates.values.copy()
    values[at] = moved[at] = np.nan
    values[:, MOMENT_COLUMNS.index("nonfinite")] = 0.0
    partly = replace(
        one,
        gradients=LayerTable(NAMES, values, MOMENT_COLUMNS),
        updates=LayerTable(NAMES, moved, UPDATE_COLUMNS),
    )
    group = LayerSeries(0, SIZES).update(partly)["blocks.3"]
    other = "blocks.3.mlp.weight"
    assert group["grad_norm"] == pytest.approx(one.gradients[other, "norm"])
    assert group["zero_fraction"] == pytest.approx(one.gradients[other, "zero_fraction"])
    assert group["update_ratio"] == pytest.approx(one.updates[other, "ratio"])
    values[at, MOMENT_COLUMNS.index("nonfinite")] = 2.0
    assert np.isnan(LayerSeries(0, SIZES).update(partly)["blocks.3"]["grad_norm"])
    values[[at, NAMES.index(other)]] = np.nan
    assert np.isnan(LayerSeries(0, SIZES).update(partly)["blocks.3"]["zero_fraction"])


def test_a_weight_that_stood_still_counts_in_its_group() -> None:
    """Its update is 0 and so is its ratio; its size is in the table of weights."""
    names = ("a.weight", "a.bias")
    table = np.zeros((2, len(MOMENT_COLUMNS)))
    table[:, 0] = 3.0, 4.0
    one = StepRecord(
        step=0,
        time=0.0,
        gradients=LayerTable(names, table, MOMENT_COLUMNS),
        weights=LayerTable(names, table, MOMENT_COLUMNS),
        updates=LayerTable(names, np.asarray([[0.3, 0.1], [0.0, 0.0]]), UPDATE_COLUMNS),
    )
    assert LayerSeries(0).update(one)["a"]["update_ratio"] == pytest.approx(0.3 / 5.0)


@pytest.mark.parametrize("wrong", [True, "blocks.*", 1.5, [1], None])
def test_wrong_types(wrong: object) -> None:
    """They are refused with what was expected."""
    with pytest.raises(TypeError, match="expected how many layers"):
        check_layers(wrong)


def test_right_and_wrong_values() -> None:
    """A negative number is refused; lists become tuples."""
    with pytest.raises(ValueError, match="layers is -1"):
        check_layers(-1)
    values: list[Layers] = [0, 20, ()]
    assert [check_layers(value) for value in values] == values
    assert check_layers(["a"]) == ("a",)
    assert group_of("weight") == "weight" and group_of("blocks.0") == "blocks"


def with_histograms(one: StepRecord, names: tuple[str, ...]) -> StepRecord:
    counts = np.arange(len(names) * BINS).reshape(-1, BINS)
    return replace(one, histograms=LayerHistograms(names, counts, np.full(len(names), 2.0)))


def of_bins(counts: Counts, edges: Floats, low: float, high: float) -> int:
    return int(counts[(edges[:-1] >= low) & (edges[1:] <= high)].sum())


def test_histograms_of_groups_and_chosen_layers() -> None:
    """The same groups and layers as have values; a group's counts are its layers' sums."""
    one = with_histograms(record(), NAMES)
    series = LayerSeries(2, SIZES)
    assert series.histograms(one) == {}
    shown = series.update(one)
    found = series.histograms(one)
    assert set(found) == set(shown)
    assert one.histograms is not None
    members = {name: [name] for name in found if name.endswith("weight")}
    assert len(members) == 2
    members |= {"blocks.3": ["blocks.3.attn.weight", "blocks.3.mlp.weight"]}
    for name, layers in members.items():
        counts, edges = found[name]
        assert len(counts) == 2 * 4 * SHOWN + 1
        assert (edges[0], edges[-1]) == (-2.0, 2.0)
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
            assert count == sum(of_bins(*one.histograms[layer], low, high) for layer in layers)


def test_histograms_of_some_layers() -> None:
    """Layers without a gradient, a finite value or a finite limit have none; globs hold."""
    names = tuple(name for name in NAMES if "blocks.3" not in name)
    one = with_histograms(record(), names)
    assert one.histograms is not None
    one.histograms.counts[names.index("head.weight")] = 0
    one.histograms.limits[names.index("blocks.4.mlp.weight")] = np.inf
    series = LayerSeries(0, SIZES)
    series.update(one)
    assert set(series.histograms(one)) == {f"blocks.{b}" for b in range(12) if b not in (3, 4)}
    series = LayerSeries(["blocks.3.*", "blocks.5.attn*", "head*"], SIZES)
    series.update(one)
    assert set(series.histograms(one)) == {"blocks.5.attn.weight"}
    one.histograms.counts[names.index("head.weight"), SIDE] = 3
    counts, edges = series.histograms(one)["head.weight"]
    assert counts.tolist() == [3] and edges[0] == -edges[1]
    assert series.histograms(replace(one, histograms=None)) == {}
