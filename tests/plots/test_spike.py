"""The figure of a spike: what is drawn, as matplotlib has it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from spiking import dataset, loss_fn, train

from gradtrace import BatchRef, Run, Spike, Suspects, load_run
from gradtrace.plots import spike as plots
from gradtrace.plots.spike import save_spike_figure, spike_figure
from gradtrace.plots.style import ALARM, ORANGE


@pytest.fixture(scope="module")
def spiking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Spike, Suspects]:
    data = dataset(77)
    _, trace = train(data, tmp_path_factory.mktemp("runs"), epochs=3)
    spike = dataclasses.replace(trace.spikes[-1], blamed=trace.spikes[-1].batches)
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


def test_what_stands_out_is_coloured(spiking: tuple[Run, Spike, Suspects]) -> None:
    """The bars and the names of the samples that stand out, and no others."""
    run, spike, suspects = spiking
    samples = next(a for a in spike_figure(run, spike, suspects).axes if a.patches and a.containers)
    bars = [to_hex(bar.get_facecolor()) == ALARM for bar in samples.containers[0]]
    names = [to_hex(label.get_color()) == ALARM for label in samples.get_yticklabels()]
    assert bars == names == [sample.stands_out for sample in suspects]
    assert any(bars) and not all(bars)


def test_other_spikes_are_marked_lightly(spiking: tuple[Run, Spike, Suspects]) -> None:
    """Each panel has rings at the spikes of its own signal, but for the one the figure is of."""
    run, spike, _ = spiking
    others = [s for s in run.events if isinstance(s, Spike) and s.step != spike.step]
    assert others
    axes = spike_figure(run, spike).axes
    for axis, signal in ((axes[0], "loss"), (axes[1], "grad_norm")):
        [rings] = [line for line in axis.lines if line.get_label() == "other spikes"]
        x, y = map(np.asarray, rings.get_data())
        expected = {
            s.step: s.value
            for s in run.events
            if isinstance(s, Spike)
            and s.signal == signal
            and (s.signal, s.step) != (spike.signal, spike.step)
        }
        assert dict(zip(x.tolist(), y.tolist(), strict=True)) == expected


def test_the_title_names_the_batch_to_blame(spiking: tuple[Run, Spike, Suspects]) -> None:
    """Not the first that the step consumed; of which step it was, where not of the spike's."""
    run, spike, _ = spiking
    first, second, third = (BatchRef(2, k, k) for k in (4, 5, 6))

    def title(**fields: Any) -> str:
        figure = spike_figure(run, dataclasses.replace(spike, batches=(first, second), **fields))
        return str(figure.get_suptitle())

    assert title(blamed=(second,), suspect="batch").endswith("\nblamed: epoch 2, batch 5")
    both = title(blamed=(second, third), suspect="batch")
    assert both.endswith("\nblamed: epoch 2, batch 5 and 1 more")
    before = title(blamed=(third,), previous_batches=(third,), suspect="update")
    assert before.endswith(f"\nblamed: epoch 2, batch 6, of step {spike.step - 1}")
    assert "batch" not in title(blamed=(), suspect="update")


def test_the_step_to_blame_has_a_ring(spiking: tuple[Run, Spike, Suspects]) -> None:
    """Where it is the one before; where it is the spike's own there is none."""
    run, spike, _ = spiking
    fields: dict[str, Any] = {"suspect": "update", "previous_batches": spike.batches}
    for figure, expected in (
        (spike_figure(run, dataclasses.replace(spike, **fields)), spike.step - 1),
        (spike_figure(run, dataclasses.replace(spike, **fields, blamed=())), None),
        (spike_figure(run, dataclasses.replace(spike, suspect="batch")), None),
    ):
        for axis, column in zip(figure.axes[:2], ("loss", "grad_norm"), strict=True):
            rings = [line for line in axis.lines if line.get_label() == "blamed step"]
            assert len(rings) == (expected is not None)
            for ring in rings:
                values = dict(zip(*(run.steps.column(c).to_pylist() for c in ("step", column)),
                                  strict=True))  # fmt: skip
                x, y = map(np.asarray, ring.get_data())
                assert (x.tolist(), y.tolist()) == ([expected], [values[expected]])
                assert to_hex(ring.get_markeredgecolor()) == ORANGE


def test_one_huge_norm_leaves_colours_to_the_others(
    spiking: tuple[Run, Spike, Suspects], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The colour scale ends at 100 times the median, and shows that there is more."""
    run, spike, _ = spiking
    ordinary: Any = spike_figure(run, spike).axes[2].images[0].norm.vmax
    assert 2 < ordinary < 100
    heat = np.array([[1.0, 1e6]])
    monkeypatch.setattr(
        plots, "_layers", lambda run, step: (["a"], heat, np.array([spike.step] * 2))
    )
    image = spike_figure(run, spike).axes[2].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (0.01, 100.0)
    assert image.colorbar is not None and image.colorbar.extend == "max"


def test_a_narrow_axis_has_plain_numbers(spiking: tuple[Run, Spike, Suspects]) -> None:
    """40 is written as 40 where the ends are less than two decades apart, not as a power."""
    run, spike, _ = spiking
    axis = spike_figure(run, spike).axes[1].yaxis
    low, high = axis.get_view_interval()
    assert high < 100 * low
    labels = [label.get_text() for which in (False, True) for label in axis.get_ticklabels(which)]
    shown = {text for text in labels if text}
    assert {"10", "20"} <= shown and all(float(text) > 0 for text in shown)


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
