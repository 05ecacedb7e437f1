"""The demo's loop."""

from __future__ import annotations

import math

import pytest
import torch

from gradtrace.demo.documents import Documents, collate
from gradtrace.demo.training import Size, token_loss, train, warm_cosine


@pytest.mark.parametrize(("step", "factor"), [(0, 1 / 40), (39, 1.0), (40, 1.0), (1000, 0.1)])
def test_schedule(step: int, factor: float) -> None:
    """The learning rate rises for 40 steps and falls to a tenth at the last."""
    assert warm_cosine(step, 1000) == pytest.approx(factor)


def test_every_token_counts_alike() -> None:
    """The loss is over the tokens of an ordinary batch, whatever the padding; that counts none."""
    _, targets = collate([torch.tensor([1, 2, 3]), torch.tensor([4, 5])])
    loss = token_loss(torch.zeros(2, 2, 10), targets)
    assert float(loss) == pytest.approx(3 * math.log(10) / (2 * 48))


def test_training_is_reproducible() -> None:
    """The same sampler and size give the same losses and norms, step by step."""
    data = Documents(count=40, corrupted=2)
    size = Size(documents=40, width=16, depth=1, batch=4)
    runs = [train(data, range(40), steps=12, size=size, directory=None)[1] for _ in range(2)]
    first, second = ([(step.loss, step.grad_norm) for step in trace.steps] for trace in runs)
    assert len(first) == 12 and first == second
