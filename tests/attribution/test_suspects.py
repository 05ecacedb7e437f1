"""A spike's samples, fetched again and ranked."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from spiking import dataset, loss_fn, train
from torch.utils.data import TensorDataset

from gradtrace import Spike, Suspects, Trace, gradtrace, load_run, suspects
from gradtrace.attribution.bad_samples import find_bad
from gradtrace.attribution.suspects import SuspectSample, _far, read_suspects, save_suspects

Trained = tuple[torch.nn.Module, Trace, TensorDataset]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    data = dataset(77)
    model, trace = train(data, tmp_path_factory.mktemp("runs"), epochs=3)
    return model, trace, data


def of(trace: Trace, signal: str) -> list[Spike]:
    return [spike for spike in trace.spikes if spike.signal == signal]


@pytest.mark.parametrize("signal", ["loss", "grad_norm"])
def test_the_poisoned_sample_comes_first(trained: Trained, signal: str) -> None:
    """Of each spike's eight samples, in either signal, the others by the larger of their ratios."""
    _, trace, data = trained
    spikes = of(trace, signal)
    assert len(spikes) >= 2
    for spike in spikes:
        found = trace.suspects(spike, data, loss_fn)
        assert found.step == spike.step and len(found) == 8
        assert found[0].sample_id == 77 and found[0].stands_out
        ratios = [max(sample.loss_ratio, sample.norm_ratio) for sample in found]
        assert ratios == sorted(ratios, reverse=True)


def test_what_was_measured_is_kept_and_blamed(
    trained: Trained,
) -> None:
    """In the run directory, where the bad-batches list finds it."""
    _, trace, data = trained
    found = trace.suspects(of(trace, "loss")[0], data, loss_fn)
    path = trace.path
    assert path is not None
    assert read_suspects(path)[-1] == found
    [bad] = find_bad(load_run(path)).samples
    assert (bad.id, bad.why) == (77, "measured")


def test_samples_that_make_no_batch_are_measured_alone(
    trained: Trained,
) -> None:
    """Where collate refuses them together, for their lengths differ."""
    _, trace, data = trained

    def one_only(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        if len(samples) > 1:
            raise RuntimeError("stack expects each tensor to be equal size")
        return tuple(part[None] for part in samples[0])

    [spike, *_] = of(trace, "loss")
    together = trace.suspects(spike, data, loss_fn)
    alone = trace.suspects(spike, data, loss_fn, collate=one_only)
    assert [s.sample_id for s in alone] == [s.sample_id for s in together]
    for a, b in zip(alone, together, strict=True):
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)


def test_a_spike_without_ids(trained: Trained) -> None:
    """It is said what to give gradtrace."""
    _, trace, data = trained
    spike = dataclasses.replace(of(trace, "loss")[0], batches=(), previous_batches=())
    with pytest.raises(ValueError, match="knows no sample ids: give gradtrace"):
        trace.suspects(spike, data, loss_fn)


def test_two_models_need_a_choice(trained: Trained) -> None:
    """A trace of a GAN cannot know which of its models the loss is of."""
    model, trace, data = trained
    both = gradtrace({"a": model, "b": torch.nn.Linear(1, 1)}, directory=None)
    with pytest.raises(ValueError, match="2 models; expected one"):
        both.suspects(of(trace, "loss")[0], data, loss_fn)


def test_kept_suspects_read_back(tmp_path: Path) -> None:
    """NaN and Inf survive, and a line torn by a kill is left out."""
    samples = (SuspectSample("a", math.inf, 1.0, math.inf, 1.0, True),)
    found = Suspects(3, "loss", samples)
    save_suspects(tmp_path, found)
    nan = Suspects(4, "loss", (SuspectSample(1, math.nan, 1.0, math.inf, 1.0, True),))
    save_suspects(tmp_path, nan)
    with (tmp_path / "suspects.jsonl").open("a") as file:
        file.write('{"step": 5, "sig')
    first, second = read_suspects(tmp_path)
    assert first == found
    assert second.step == 4 and math.isnan(second[0].loss)


def test_no_file_no_suspects(tmp_path: Path) -> None:
    """A run of which nothing was measured."""
    assert read_suspects(tmp_path) == []


@pytest.mark.parametrize(
    ("ratios", "far"),
    [
        # Narrow others: five deviations and twice the median are enough, for several at once.
        ([0.99, 1.0, 1.01, 1.0, 2.1, 2.2], [4, 5]),
        # Not twice the median, however narrow.
        ([0.99, 1.0, 1.01, 1.0, 1.9], []),
        # Wide others: 46 times the median is alone, 4 times the next one.
        ([0.01, 0.05, 0.2, 1.0, 5.0, 8.0, 46.0], [6]),
        # Not 4 times the next one: it could be one of them.
        ([0.01, 0.05, 0.2, 1.0, 5.0, 15.0, 46.0], []),
        # Only the largest may be alone.
        ([0.01, 0.05, 0.2, 1.0, 5.0, 21.0, 90.0], [6]),
        ([0.2, 1.0, 1.8], []),
        ([1.0], []),
        ([0.01, 1.0, 20.0, math.inf], [3]),
    ],
)
def test_a_sample_stands_out_by_the_spread_or_all_alone(
    ratios: list[float], far: list[int]
) -> None:
    """Five deviations above the others, or 4 times the next one; twice the median in any case."""
    for order in (1, -1):
        found = np.flatnonzero(_far(np.asarray(ratios[::order])))
        places = found if order == 1 else len(ratios) - 1 - found
        assert sorted(places.tolist()) == far


def test_wrong_arguments_are_told_before_anything_is_fetched(trained: Trained) -> None:
    """The loss's class, a frozen model, no model, and no spike."""
    model, trace, data = trained
    [spike, *_] = of(trace, "loss")
    with pytest.raises(TypeError, match=r"the class CrossEntropyLoss; .*make an instance"):
        trace.suspects(spike, None, torch.nn.CrossEntropyLoss)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        suspects(torch.nn.Linear(1, 1).requires_grad_(False), spike, None, loss_fn)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        suspects(trace, spike, data, loss_fn)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"spike is a int; expected a Spike.*trace\.spikes"):
        suspects(model, 7, data, loss_fn)  # type: ignore[arg-type]
