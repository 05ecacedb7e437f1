"""Histograms of layers on one grid, against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from gradtrace.records import LayerHistograms
from gradtrace.records.histograms import BINS, EDGES, OCTAVES, SIDE, Counts, Floats, in_use


def counted(values: Floats, limit: float) -> Counts:
    """Counts [BINS] of values, magnitude by magnitude."""
    inner = limit * EDGES[SIDE + 1 :]
    place = np.searchsorted(inner, np.abs(values), side="right")
    signed = SIDE + np.where(values < 0, -place, place)
    return np.bincount(np.clip(signed, 0, BINS - 1), minlength=BINS).astype(np.int64)


def of(**layers: Floats) -> LayerHistograms:
    limits = np.array([2.0 ** np.ceil(np.log2(np.abs(v).max() * 1.001)) for v in layers.values()])
    counts = [counted(v, lim) for v, lim in zip(layers.values(), limits.tolist(), strict=True)]
    return LayerHistograms(tuple(layers), np.stack(counts), limits)


def test_the_grid_has_octaves_of_four_equal_bins() -> None:
    """Symmetric, ascending, ends at 1, and no bin is wider than a quarter of its inner edge."""
    assert EDGES.shape == (BINS + 1,) and (EDGES[0], EDGES[-1]) == (-1.0, 1.0)
    np.testing.assert_array_equal(EDGES, -EDGES[::-1])
    positive = EDGES[SIDE + 1 :]
    assert positive[0] == 2.0**-OCTAVES
    widths = np.diff(positive)
    assert (widths > 0).all() and (widths <= positive[:-1] / 4).all()
    assert not EDGES.flags.writeable


def test_a_layer_is_found_by_name() -> None:
    """Counts and edges from the first bin with values to the last, as numpy has them."""
    values = np.random.default_rng(0).normal(size=1000)
    found = of(a=values, b=values * 8)
    counts, edges = found["b"]
    assert len(edges) == len(counts) + 1 and counts.sum() == 1000
    assert counts[0] > 0 and counts[-1] > 0
    np.testing.assert_array_equal(np.histogram(values * 8, edges)[0], counts)
    assert len(found) == 2 and found.nbytes == 2 * (BINS + 1) * 8
    with pytest.raises(KeyError, match="no layer 'x' in these histograms; they have: a, b"):
        found["x"]


def test_merged_layers_are_the_histogram_of_all_their_values() -> None:
    """Exactly, though their limits differ by octaves; of no layers there is none."""
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=500) * scale for scale in (1.0, 1e-3, 40.0)]
    found = of(a=parts[0], b=parts[1], c=parts[2])
    whole = of(all=np.concatenate(parts))
    merged = found.merged([0, 1, 2])
    assert merged is not None
    counts, limit = merged
    assert limit == whole.limits[0]
    # What is too small for the wider grid goes to the bin around zero.
    np.testing.assert_array_equal(counts, whole.counts[0])
    assert found.merged([]) is None
    odd = LayerHistograms(("a", "b"), found.counts[:2], np.array([1.0, 3.0]))
    assert odd.merged([0, 1]) is None


@pytest.mark.parametrize("octaves", [1, 4, OCTAVES])
def test_fewer_octaves_widen_the_middle(octaves: int) -> None:
    """The bin around zero takes what is below them; counts are numpy's over the edges left."""
    values = np.random.default_rng(2).normal(size=2000)
    counts, edges = in_use(counted(values, 8.0), 8.0, octaves=octaves)
    np.testing.assert_array_equal(np.histogram(values, edges)[0], counts)
    assert counts.sum() == 2000
    assert edges[edges > 0].min() == 8.0 * 2.0**-octaves


def test_without_values_the_middle_is_left() -> None:
    """One empty bin around zero."""
    counts, edges = in_use(np.zeros(BINS, np.int64), 2.0)
    assert counts.tolist() == [0]
    assert edges.tolist() == [-(2.0 ** (1 - OCTAVES)), 2.0 ** (1 - OCTAVES)]


def test_equality_is_of_values() -> None:
    """Names, counts and limits."""
    one, same = of(a=np.ones(3)), of(a=np.ones(3))
    assert one == same and one is not same
    assert one != LayerHistograms(("b",), one.counts, one.limits)
    assert one != LayerHistograms(("a",), one.counts + 1, one.limits)
    assert one != LayerHistograms(("a",), one.counts, one.limits * 2)
    assert one != "histograms"
