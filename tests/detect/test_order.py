"""Layers in the order in which their modules ran."""

from __future__ import annotations

import numpy as np
import pytest

from gradtrace.detect.order import LayerOrder
from gradtrace.records import MOMENT_COLUMNS, LayerTable

TABLE = LayerTable(
    ("a.weight", "b.weight", "c.weight"), np.zeros((3, len(MOMENT_COLUMNS))), MOMENT_COLUMNS
)


def test_layers_come_in_the_order_their_modules_ran() -> None:
    """Not as the model lists them; several of one module stay as they were given."""
    order = LayerOrder({"c": 0, "a": 1, "b": 2})
    assert order.forward(["a.weight", "b.weight", "c.weight"], TABLE) == [
        "c.weight",
        "a.weight",
        "b.weight",
    ]
    assert order.forward(["a.weight", "a.bias", "c.weight"], None) == [
        "c.weight",
        "a.weight",
        "a.bias",
    ]


def test_a_parameter_ranks_with_the_module_that_holds_its_own() -> None:
    """A module that was never seen to run has the rank of the one around it."""
    order = LayerOrder({"block": 1, "head": 0})
    assert order.forward(["block.inner.weight", "head.weight"], None) == [
        "head.weight",
        "block.inner.weight",
    ]


@pytest.mark.parametrize("layers", [["c.weight", "a.weight"], ["a.weight", "c.weight"]])
def test_without_a_rank_for_each_the_models_own_order_counts(layers: list[str]) -> None:
    """That of the table; without one, as given."""
    order = LayerOrder({"c": 0})
    assert order.forward(layers, TABLE) == ["a.weight", "c.weight"]
    assert order.forward(layers, None) == layers


def test_an_order_may_grow() -> None:
    """What runs for the first time later is ranked from then on."""
    modules = {"b": 0}
    order = LayerOrder(modules)
    assert order.forward(["a.weight", "b.weight"], TABLE) == ["a.weight", "b.weight"]
    modules["a"] = 1
    assert order.forward(["a.weight", "b.weight"], TABLE) == ["b.weight", "a.weight"]
