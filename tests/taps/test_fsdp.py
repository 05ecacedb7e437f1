"""Gradients that FSDP2 holds back are found, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import alone
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from gradtrace.taps.fsdp import HeldBack


def put_into(found: HeldBack, grads: list[Any]) -> list[Any]:
    found.into(grads)
    return grads


@pytest.mark.parametrize("half", [False, True])
def test_what_is_held_back_is_found_until_it_is_reduced(half: bool) -> None:
    """The sum itself, in whichever dtype it is added up, and whose version tells of additions."""
    options: dict[str, Any] = {}
    if half:
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    with alone():
        model: Any = fully_shard(nn.Linear(3, 2), **options)
        parameters = list(model.parameters())
        found = HeldBack([model], parameters)
        assert found.at(0) is None  # nothing was computed yet
        model.set_requires_gradient_sync(False)
        model(torch.ones(1, 3)).sum().backward()
        first = found.at(0)
        assert first is not None and torch.equal(first.float(), torch.ones(2, 3))
        assert [p.grad for p in parameters] == [None, None]
        version = first._version
        model(torch.ones(1, 3)).sum().backward()
        second = found.at(0)
        assert second is first and second._version > version
        assert put_into(found, [None, None]) == [first, found.at(1)]
        model.set_requires_gradient_sync(True)
        model(torch.ones(1, 3)).sum().backward()
        assert found.at(0) is None and found.at(1) is None
        shown: list[Tensor | None] = [p.grad for p in parameters]
        assert put_into(found, list(shown)) == shown


def test_of_other_parameters_nothing_is_found() -> None:
    """A model that is not sharded shows its gradients."""
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    found = HeldBack([model], list(model.parameters()))
    assert found.at(0) is None and found.at(7) is None
    assert put_into(found, [None]) == [None]
