"""Every loop of the zoo, without a trace and with one, under both plans."""

from __future__ import annotations

import functools
import gc
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import known
import numpy as np
import pytest
import torch
from zoo import LOOPS
from zoo.compare import Seen, differences
from zoo.inventory import places
from zoo.tracing import PLANS, Tracer, forced
from zoo.truth import Truth

from gradtrace.guard import Guard


@dataclass
class Run:
    """A loop that has run: its truth, what its traces said, and what they left behind."""

    truth: Truth
    seen: list[Seen]
    errors: list[str]
    """Errors of gradtrace's own that it held back."""
    changed: list[str]
    """Places in torch that are not what they were."""
    cyclic: list[str]
    """Loaders that only a garbage collection ends: their workers may wait for it for seconds."""
    held: list[str]
    """What lives although only a closed trace is left that could hold it."""
    leaked: list[str]
    """What lives although nothing is left."""


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What lives already need not be looked at in each of the many collections."""
    LOOPS["plain"](Truth(), Tracer("cpu"))  # has torch load what it loads late
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@functools.cache
def run(name: str, plan: str | None) -> Run:
    """The loop with a trace, or bare for a plan of None; once, and bare first.

    So what torch itself does only once, as the compiler when it is imported, is not the trace's.
    """
    if plan is not None:
        run(name, None)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    truth, tracer = Truth(), Tracer(plan)
    errors: list[str] = []
    before = places()
    with (
        forced(plan),
        mock.patch.object(Guard, "failed", lambda self, source, error: errors.append(repr(error))),
    ):
        gc.disable()  # what dies before a collection shall be known
        try:
            LOOPS[name](truth, tracer)
            cyclic = [label for label in alive(truth) if label.startswith("loader")]
        finally:
            gc.enable()
    after = places()
    changed = [place for place in before | after if before.get(place) != after.get(place)]
    seen = [Seen.of(trace) for trace in tracer.traces]
    held = living(truth)
    del tracer
    leaked = living(truth)
    gc.freeze()  # so that the next collection looks at what is new
    return Run(truth, seen, errors, changed, cyclic, held, leaked)


def alive(truth: Truth) -> list[str]:
    return [label for label, ref in truth.living.items() if ref() is not None]


def living(truth: Truth) -> list[str]:
    if alive(truth):
        gc.collect()
    return alive(truth)


def cases(*, plans: bool, failing: dict[str, str]) -> list[Any]:
    """A parameter for each loop, or for each loop and plan; what is known to fail is marked."""
    found = []
    for name in LOOPS:
        for plan in PLANS if plans else ("cpu",):
            reason = failing.get(name) or failing.get(f"{name} / {plan}")
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            found.append(pytest.param(name, plan, marks=marks, id=f"{name} / {plan}"))
    return found


@pytest.mark.parametrize(("name", "plan"), cases(plans=True, failing=known.RECORDS))
def test_records_tell_the_truth(name: str, plan: str) -> None:
    """Steps, losses, norms, clips, batches and what was thrown away are those of the loop."""
    traced = run(name, plan)
    truths = [traced.truth, *traced.truth.also]
    assert traced.errors == []
    assert len(traced.seen) == len(truths)
    found = [differences(*pair) for pair in zip(truths, traced.seen, strict=True)]
    assert found == [[] for _ in truths]


@pytest.mark.parametrize(("name", "plan"), cases(plans=True, failing=known.NEUTRALITY))
def test_training_is_bitwise_equal(name: str, plan: str) -> None:
    """Parameters, buffers, gradients, losses, the order of data and random states are the same."""
    bare, traced = run(name, None).truth, run(name, plan).truth
    assert bare.numbers.keys() == traced.numbers.keys()
    assert [key for key in bare.numbers if bare.numbers[key] != traced.numbers[key]] == []
    assert repr(bare.steps) == repr(traced.steps)


@pytest.mark.parametrize(("name", "plan"), cases(plans=False, failing=known.RESTORED))
def test_everything_is_restored(name: str, plan: str) -> None:
    """No hook or attribute is left on the user's objects, and torch is what it was."""
    bare, traced = run(name, None), run(name, plan)
    assert [place for place in traced.changed if place not in bare.changed] == []
    assert bare.truth.left == traced.truth.left


@pytest.mark.parametrize(("name", "plan"), cases(plans=False, failing=known.KEPT))
def test_nothing_is_kept_alive(name: str, plan: str) -> None:
    """Replaced parameters die at once, the rest with the loop, the model with its trace."""
    bare, traced = run(name, None), run(name, plan)
    assert traced.truth.undead == bare.truth.undead
    held = [label for label in traced.held if not label.startswith("model")]
    assert sorted({*held, *traced.leaked} - set(bare.leaked)) == []
    assert [label for label in traced.cyclic if label not in bare.cyclic] == []


def test_every_known_failure_is_of_a_loop() -> None:
    """What is listed as failing is a loop, or a loop and a plan, that there is."""
    there = {*LOOPS, *(f"{name} / {plan}" for name in LOOPS for plan in PLANS)}
    for failing in (known.RECORDS, known.NEUTRALITY, known.RESTORED, known.KEPT):
        assert failing.keys() <= there
