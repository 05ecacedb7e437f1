"""A spike's samples, fetched again and measured."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from spiking import dataset, loss_fn, train
from torch.utils.data import TensorDataset

from gradtrace import BatchRef, Spike, Trace, gradtrace, load_run, suspects
from gradtrace.attribution.bad_samples import find_bad
from gradtrace.attribution.refetch import fetch
from gradtrace.attribution.suspects import read_suspects

Trained = tuple[torch.nn.Module, Trace, TensorDataset]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    data = dataset(77)
    model, trace = train(data, tmp_path_factory.mktemp("runs"), epochs=3)
    return model, trace, data


def of(trace: Trace, signal: str) -> list[Spike]:
    """The signal's spikes, with what their steps consumed held responsible."""
    return [
        dataclasses.replace(spike, blamed=spike.batches)
        for spike in trace.spikes
        if spike.signal == signal
    ]


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
    [spike, *_] = of(trace, "loss")
    nothing = dataclasses.replace(spike, batches=(), previous_batches=(), blamed=())
    unnamed = tuple(dataclasses.replace(batch, sample_ids=None) for batch in spike.batches)
    for blind in (nothing, dataclasses.replace(spike, batches=unnamed, blamed=unnamed)):
        with pytest.raises(ValueError, match="knows no sample ids: give gradtrace"):
            trace.suspects(blind, data, loss_fn)


def test_two_models_need_a_choice(trained: Trained) -> None:
    """A trace of a GAN cannot know which of its models the loss is of."""
    model, trace, data = trained
    both = gradtrace({"a": model, "b": torch.nn.Linear(1, 1)}, directory=None)
    with pytest.raises(ValueError, match="2 models; expected one"):
        both.suspects(of(trace, "loss")[0], data, loss_fn)


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


def test_the_batches_held_responsible_are_measured_and_no_others(trained: Trained) -> None:
    """Of four batches of this step and the one before, the samples of the blamed one alone."""
    model, trace, data = trained
    batches = [BatchRef(0, k, k, tuple(range(10 * k, 10 * k + 5))) for k in range(4)]
    [spike, *_] = of(trace, "loss")
    spike = dataclasses.replace(
        spike,
        batches=tuple(batches[2:]),
        previous_batches=tuple(batches[:2]),
        suspect="update",
        blamed=(batches[1],),
    )
    found = suspects(model, spike, data, loss_fn)
    assert {sample.sample_id for sample in found} == set(range(10, 15))


def test_a_spike_that_no_batch_is_to_blame_for_is_told(trained: Trained) -> None:
    """As when the learning rate jumped: the reason is said, and no innocent sample measured."""
    model, trace, data = trained
    [spike, *_] = of(trace, "loss")
    spike = dataclasses.replace(
        spike, blamed=(), suspect="update", suspicion="the learning rate rose 10 times"
    )
    with pytest.raises(
        ValueError,
        match=rf"no batch is held responsible.*step {spike.step} \(suspect: update: the learning "
        r"rate rose 10 times\)",
    ):
        suspects(model, spike, data, loss_fn)


def test_samples_are_fetched_from_datasets_mappings_and_callables() -> None:
    """Indices, documents' names, or a function; what is not there is named."""
    assert fetch([10, 11, 12], [2, 0]) == [12, 10]
    assert fetch({"doc": 5}, ["doc"]) == [5]
    assert fetch(lambda name: name + "!", ["doc"]) == ["doc!"]
    with pytest.raises(KeyError, match="no sample 'doc'"):
        fetch([1, 2], ["doc"])
    with pytest.raises(KeyError, match="no sample 7"):
        fetch([1, 2], [7])
