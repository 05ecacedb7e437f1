"""The figure of a spike: what is drawn, as matplotlib has it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from spiking import dataset, loss_fn, train

from gradtrace import Run, Spike, Suspects, load_run
from gradtrace.plots import save_spike_figure, spike_figure


@pytest.fixture(scope="module")
def spiking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Spike, Suspects]:
    data = dataset(77)
    _, trace = train(data, tmp_path_factory.mktemp("runs"), epochs=3)
    spike = trace.spikes[-1]
    assert trace.path is not None
    return load_run(trace.path), spike, trace.suspects(spike, data, loss_fn)


def test_loss_norm_layers_and_samples(spiking: tuple[Run, Spike, Suspects]) -> None:
    """Log scales, the recorded values, a heat map of the layers that rose, samples ranked."""
    run, spike, suspects = spiking
    loss, norm, layers, samples, *_ = spike_figure(run, spike, suspects).axes
    for axis, column in ((loss, "loss"), (norm, "grad_norm")):
        assert axis.get_yscale() == "log"
        x, y = map(np.asarray, axis.lines[0].get_data())
        np.testing.assert_array_equal(y, run.steps.column(column).to_numpy()[x])
        assert spike.step in x.tolist()
    heat = np.asarray(layers.images[0].get_array())
    here = heat[:, spike.step - int(layers.images[0].get_extent()[0] + 0.5)]
    assert here.max() > 3 and here.max() >= 0.5 * np.nanmax(heat)
    assert "77" in samples.get_yticklabels()[0].get_text()


def test_without_samples_or_layers(spiking: tuple[Run, Spike, Suspects]) -> None:
    """No panel stands empty."""
    run, spike, _ = spiking
    assert len(spike_figure(run, spike).axes) == 4  # the heat map has a colour bar


def test_written_as_asked(spiking: tuple[Run, Spike, Suspects], tmp_path: Path) -> None:
    """The suffix chooses the format."""
    run, spike, suspects = spiking
    save_spike_figure(run, spike, tmp_path / "a.png", suspects)
    save_spike_figure(run, spike, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_a_run_without_those_steps(spiking: tuple[Run, Spike, Suspects]) -> None:
    """It is said, not drawn."""
    run, spike, _ = spiking
    with pytest.raises(ValueError, match="no steps around step 99999"):
        spike_figure(run, dataclasses.replace(spike, step=99_999))


def test_matplotlib_missing(
    spiking: tuple[Run, Spike, Suspects], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the pip line."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'gradtrace\[plots\]'"):
        spike_figure(*spiking)
