"""Which outputs exporters show: large ones, those with many zeros, globs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gradtrace.metrics.layers import Layers
from gradtrace.metrics.modules import ModuleSeries
from gradtrace.records import ACTIVATION_COLUMNS, LayerTable, StepRecord

NAMES = tuple(f"blocks.{block}.{part}" for block in range(6) for part in ("attn", "mlp"))
LARGE, ZEROS = ACTIVATION_COLUMNS.index("max_abs"), ACTIVATION_COLUMNS.index("zero_fraction")


def record(step: int = 0, names: tuple[str, ...] = NAMES) -> StepRecord:
    values = np.ones((len(names), len(ACTIVATION_COLUMNS)))
    values[:, LARGE] = np.arange(1, len(names) + 1)
    values[:, ZEROS] = np.linspace(0.9, 0.1, len(names))
    return StepRecord(step, 0.0, activations=LayerTable(names, values, ACTIVATION_COLUMNS))


@pytest.mark.parametrize(
    ("layers", "shown"),
    [
        (4, {NAMES[-1], NAMES[-2], NAMES[0], NAMES[1]}),
        (3, {NAMES[-1], NAMES[-2], NAMES[0]}),
        (1, {NAMES[-1]}),
        (0, set()),
        (100, set(NAMES)),
        (["blocks.3.*", "*.mlp"], {n for n in NAMES if n.endswith("mlp")} | {"blocks.3.attn"}),
        ([], set()),
    ],
)
def test_modules_are_chosen(layers: Layers, shown: set[str]) -> None:
    """Half for the largest outputs, half for the most zeros; or just those that globs name."""
    one = record()
    found = ModuleSeries(layers).update(one)
    assert set(found) == shown
    assert one.activations is not None
    for name, metrics in found.items():
        assert metrics == {
            "activation_max_abs": one.activations[name, "max_abs"],
            "activation_zero_fraction": one.activations[name, "zero_fraction"],
        }


def test_steps_without_outputs_say_nothing() -> None:
    """Where activations were not measured, or were empty, there are no values."""
    series = ModuleSeries(5)
    assert series.update(replace(record(), activations=None)) == {}
    assert series.update(record(names=())) == {}


def test_what_was_not_measured_is_left_out() -> None:
    """NaN in a cell says nothing was measured, and is sent to nobody; Inf is a value."""
    one = record()
    assert one.activations is not None
    one.activations.values[0, [LARGE, ZEROS]] = np.inf, np.nan
    assert ModuleSeries(["*"]).update(one)[NAMES[0]] == {"activation_max_abs": np.inf}


def test_the_choice_lasts_until_modules_change() -> None:
    """The same modules are shown from sample to sample; other modules are chosen anew."""
    series = ModuleSeries(2)
    first = set(series.update(record()))
    other = record(1)
    assert other.activations is not None
    other.activations.values[:, LARGE] *= -1
    assert set(series.update(other)) == first
    assert set(series.update(record(2, NAMES[:3]))) == {NAMES[0], NAMES[2]}
