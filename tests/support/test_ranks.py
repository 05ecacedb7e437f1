"""Processes that train together end, whatever becomes of one of them."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from ranks import RankError, on_ranks
from torch import distributed, nn

from gradtrace import gradtrace
from gradtrace.collect.collector import Collector

pytestmark = pytest.mark.slow


def added() -> float:
    mine = torch.tensor(float(distributed.get_rank() + 1))
    distributed.all_reduce(mine)
    return float(mine)


def failing() -> None:
    if distributed.get_rank():
        raise KeyError("on purpose")
    distributed.barrier()


def hanging() -> None:
    if distributed.get_rank():
        threading.Event().wait()


def dying() -> None:
    if distributed.get_rank():
        os._exit(3)
    distributed.barrier()


def holding_back() -> None:
    Collector.before_step = None  # type: ignore[assignment, method-assign]
    model = nn.Linear(2, 2)
    with gradtrace(model, directory=None):
        model(torch.ones(1, 2)).sum().backward()
        torch.optim.SGD(model.parameters()).step()


def test_each_rank_returns_what_it_found() -> None:
    """They are in one process group, and their results come in the order of ranks."""
    assert on_ranks(added) == [3.0, 3.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (failing, "rank 1 failed:(.|\\n)*on purpose"),
        (dying, "rank 1 died|rank 0 failed"),
        (holding_back, "failed:(.|\\n)*held back errors"),
    ],
)
def test_a_failure_on_one_rank_is_one_of_the_test(function: object, message: str) -> None:
    """With its traceback; an error that gradtrace held back there is a failure."""
    with pytest.raises(RankError, match=message):
        on_ranks(function)  # type: ignore[arg-type]


def test_a_rank_that_hangs_ends_by_a_time_out() -> None:
    """And is named."""
    with pytest.raises(RankError, match=r"ranks \[1\] hang"):
        on_ranks(hanging, within=8.0)
