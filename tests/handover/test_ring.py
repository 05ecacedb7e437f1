"""The lane of an accelerator's values, run on CPU tensors."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from gradtrace.handover.ring import Ring

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(5))
def test_a_ring_is_a_queue_of_bounded_size(seed: int) -> None:
    """Over many random puts and takes a ring loses nothing it accepted and mixes nothing up."""
    chance = random.Random(seed)
    ring = Ring(CPU, capacity=64, slots=5)
    waiting: list[tuple[tuple[int, int, int], list[torch.Tensor]]] = []
    refused = 0
    for _ in range(2000):
        if waiting and chance.random() < 0.5:
            ticket, tensors = waiting.pop(0)
            values = ring.take(ticket, [t.shape for t in tensors])
            assert values is not None
            for value, tensor in zip(values, tensors, strict=True):
                assert np.array_equal(value, tensor.double().numpy())
        else:
            tensors = [torch.rand(chance.randrange(1, 12)) for _ in range(chance.randrange(1, 4))]
            accepted = ring.put(tensors)
            if accepted is None:
                refused += 1
                assert waiting, "an empty ring takes what fits into it"
            else:
                waiting.append((accepted, tensors))
    assert refused > 0


def test_what_is_larger_than_a_ring_is_refused() -> None:
    """A step that can never fit is refused at once, and the ring goes on working."""
    ring = Ring(CPU, capacity=8, slots=4)
    assert ring.put([torch.ones(9)]) is None
    assert ring.put([torch.ones(8)]) is not None
