"""Causes in the numbers of a step and of the one before it."""

from __future__ import annotations

import numpy as np
from spike_records import causes, record, spikes_of, sure

from gradtrace.records import ACTIVATION_COLUMNS, LayerTable


def test_a_module_whose_output_is_not_finite() -> None:
    """Named on steps that measured activations; the count of bad gradients otherwise."""
    values = np.zeros((2, len(ACTIVATION_COLUMNS)))
    values[1, 5] = 4
    records = [record(s) for s in range(120)]
    records[100] = record(
        100, norm=9.0, activations=LayerTable(("embed", "block"), values, ACTIVATION_COLUMNS)
    )
    [spike] = spikes_of(records)
    assert spike.causes[0].kind == "non-finite input"
    assert spike.causes[0].evidence == {"module": "block"}
    records[100] = record(100, norm=9.0, bad=3)
    assert causes(spikes_of(records)[0])["non-finite gradients"].evidence == {"count": 3}


def test_half_precision_that_overflowed() -> None:
    """A step that the AMP scaler skipped shortly before."""
    records = [record(s, scale=1024.0) for s in range(120)]
    records[98] = record(98, scale=1024.0, skipped=True)
    records[100] = record(100, norm=9.0, scale=512.0)
    [spike] = spikes_of(records)
    assert causes(spike)["half precision"].evidence == {"steps": [98], "scale": 512.0}


def test_one_signal_without_the_other() -> None:
    """A high loss with an ordinary gradient, and the reverse."""
    records = [record(s) for s in range(160)]
    records[100] = record(100, loss=9.0)
    records[130] = record(130, norm=9.0)
    loss, norm = spikes_of(records)
    assert "unusual loss only" in sure(loss)
    assert "unusual gradient only" in sure(norm)
    records[140] = record(140, loss=9.0, norm=9.0)
    both = spikes_of(records)[-1]
    assert not {"unusual loss only", "unusual gradient only"} & set(causes(both))
