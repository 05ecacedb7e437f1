"""On many ranks: no collective of ours, the same training, and numbers of each rank's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel import SET_UPS, Outcome, bare_and_traced, pipeline_bare_and_traced, train
from ranks import on_ranks
from torch import distributed, nn

from gradtrace import Sampling, gradtrace

pytestmark = pytest.mark.slow

EVERYTHING = Sampling(activations=1, updates=1, histograms=1)
SHORT = 4
LONG = 300
SPIKE = 150
ONE_BACKWARD = [name for name in SET_UPS if "no_sync" not in name and "accumulated" not in name]
SCHEDULES = ["ScheduleGPipe", "Schedule1F1B"]

Outcomes = list[dict[str, tuple[Outcome, Outcome]]]


@pytest.fixture(scope="module")
def short() -> Outcomes:
    """By rank and set-up: a few steps without a trace, and with one that measures everything."""
    return on_ranks(bare_and_traced, list(SET_UPS), SHORT, EVERYTHING, within=120.0)


@pytest.fixture(scope="module")
def pipelines() -> Outcomes:
    """The same of pipelines."""
    return on_ranks(pipeline_bare_and_traced, SCHEDULES, SHORT, EVERYTHING)


def check_harmless(bare: Outcome, traced: Outcome) -> None:
    """No collective more, no bit other, no step less."""
    assert bare.collectives == traced.collectives
    assert bare.issued == traced.issued > 0
    assert (bare.digest, bare.losses) == (traced.digest, traced.losses)
    assert bare.steps == traced.steps == len(traced.records) and traced.dropped == 0


def check_own(traced: Outcome) -> None:
    """Norms are those of this rank's part as the optimizer got it; losses are this rank's."""
    assert [r.grad_norm for r in traced.records] == pytest.approx(traced.norms, rel=1e-5)
    assert [list(r.losses) for r in traced.records] == traced.losses
    assert all(r.clip is None for r in traced.records)


@pytest.mark.parametrize("name", SET_UPS)
def test_no_set_up_is_disturbed(short: Outcomes, name: str) -> None:
    """With everything measured, each rank issues the collectives of its loop and trains the same.

    Counted at the dispatcher, and by the backend itself.
    """
    for rank in short:
        check_harmless(*rank[name])


@pytest.mark.parametrize("name", SET_UPS)
def test_numbers_are_of_the_ranks_own_part(short: Outcomes, name: str) -> None:
    """Also after accumulation, whether gradients are reduced each time or only in the end."""
    for rank in short:
        check_own(rank[name][1])


def test_what_only_a_collective_would_tell_is_noted(short: Outcomes) -> None:
    """Summands, outputs or gradients, have no numbers."""
    for rank in short:
        traced = rank["sequence parallel"][1]
        assert any("the output of block.down is a summand" in note for note in traced.notes)
        assert any("they have no numbers, and are not in" in note for note in traced.notes)
        record = traced.records[-1]
        assert record.activations["block.down", "norm"] != record.activations["block.down", "norm"]
        assert record.activations["block.up", "norm"] > 0
        assert record.gradients["norm.weight", "norm"] != record.gradients["norm.weight", "norm"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_pipeline_divides_gradients_and_clips_none(pipelines: Outcomes, name: str) -> None:
    """Each rank trains its stage as without a trace; its norms are those after the division."""
    for rank in pipelines:
        check_harmless(*rank[name])
        check_own(rank[name][1])


def spiking(name: str) -> tuple[Outcome, Outcome]:
    spike = (SPIKE, 1)
    return (
        train(name, LONG, None, spike=spike, dispatched=False),
        train(name, LONG, Sampling(), spike=spike, dispatched=False),
    )


@pytest.mark.parametrize("name", ONE_BACKWARD)
def test_ranks_that_measure_at_different_steps_train_on(name: str) -> None:
    """A spike of one rank's loss has that rank measure everything, and no rank waits for it."""
    ranks = on_ranks(spiking, name, within=90.0)
    for bare, traced in ranks:
        check_harmless(bare, traced)
    assert (SPIKE, "loss") in ranks[1][1].spikes and (SPIKE, "loss") not in ranks[0][1].spikes
    asked = set(range(Sampling().first)) | set(range(0, LONG, Sampling().activations))
    measured = {r.step for r in ranks[1][1].records if r.activations is not None}
    assert len(measured - asked) >= Sampling().burst


def start_at_once(directory: Path) -> dict[str, Any]:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    distributed.barrier()
    with gradtrace(model, run="big", directory=directory / "deep" / "runs") as trace:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert trace.path is not None
    info = json.loads((trace.path / "run.json").read_text())
    return {"path": trace.path.name, "rank": info["rank"], "steps": len(trace.steps)}


def test_ranks_may_share_a_name(tmp_path: Path) -> None:
    """Started at the same moment, where no folder is yet, each has a run of its own."""
    assert on_ranks(start_at_once, tmp_path) == [
        {"path": "big", "rank": 0, "steps": 3},
        {"path": "big.rank1", "rank": 1, "steps": 3},
    ]
    assert sorted(p.name for p in (tmp_path / "deep" / "runs").iterdir()) == ["big", "big.rank1"]
