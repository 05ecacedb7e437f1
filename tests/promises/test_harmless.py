"""A trace leaves nothing behind, breaks nothing inside, and its own failures stay its own."""

from __future__ import annotations

import copy
import io
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from leaks import in_its_own_process, many_steps, many_traces
from places import patched_places
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Sampling, Trace, gradtrace
from gradtrace.taps.patches import registry

EVERYTHING = Sampling(activations=1, updates=1)
autograd: Any = torch.autograd


@pytest.fixture
def setup() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(24, 6), torch.randint(0, 2, (24,))), batch_size=4)
    return model, optimizer, loader


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]) -> None:
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_everything_is_restored_after_exit(setup: Any, tmp_path: Path) -> None:
    """After a trace every patched name, hook, loader attribute and thread is what it was."""
    model, optimizer, loader = setup
    before, threads = patched_places(loader), set(threading.enumerate())
    hooks = [dict(vars(m)) for m in model.modules()]
    with gradtrace(model, loader=loader, directory=tmp_path, sampling=EVERYTHING):
        assert patched_places(loader)["backward"] is not before["backward"]
        train(model, optimizer, loader)
    assert patched_places(loader) == before
    assert [dict(vars(m)) for m in model.modules()] == hooks
    assert set(threading.enumerate()) <= threads


def test_an_exception_in_the_loop_restores_everything_and_comes_out(setup: Any) -> None:
    """The user's exception leaves the `with` unchanged, and nothing stays patched."""
    model, optimizer, loader = setup
    before = patched_places(loader)
    error = KeyError("mine")

    def traced() -> None:
        with gradtrace(model, loader=loader, directory=None):
            train(model, optimizer, loader)
            raise error

    with pytest.raises(KeyError) as caught:
        traced()
    assert caught.value is error
    assert patched_places(loader) == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_overlapping_traces_see_their_own_model(setup: Any, order: tuple[int, int]) -> None:
    """Two traces end in any order, each sees only its model, and all is restored."""
    model, optimizer, loader = setup
    other = nn.Linear(6, 2)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1)
    before = patched_places(loader)
    traces = [
        gradtrace(model, loader=loader, directory=None).start(),
        gradtrace(other, loader=loader, directory=None).start(),
    ]
    train(model, optimizer, loader)
    train(model, optimizer, loader)
    train(other, theirs, loader)
    traces[order[0]].close()
    train(model, optimizer, loader)
    traces[order[1]].close()
    assert patched_places(loader) == before
    counts = [len(trace.steps) for trace in traces]
    assert counts == ([12, 6] if order == (0, 1) else [18, 6])
    assert all(s.clip is not None and s.clip.calls == 1 for t in traces for s in t.steps)


def test_a_function_patched_over_ours_is_left_alone(setup: Any) -> None:
    """When somebody wraps what we wrapped, their wrapper stays and keeps working."""
    model, optimizer, loader = setup
    original = autograd._engine_run_backward
    calls = []
    trace = gradtrace(model, directory=None).start()
    ours = autograd._engine_run_backward

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return ours(*args, **kwargs)

    autograd._engine_run_backward = theirs
    try:
        trace.close()
        assert autograd._engine_run_backward is theirs
        train(model, optimizer, loader)
        assert len(calls) == 6
        with gradtrace(model, directory=None) as again:
            train(model, optimizer, loader)
        assert len(again.steps) == 6 and len(again.steps[0].losses) == 1
    finally:
        autograd._engine_run_backward = ours
        with gradtrace(model, directory=None):
            pass
    assert autograd._engine_run_backward is original


def test_the_model_can_be_copied_saved_and_scripted_inside(setup: Any, tmp_path: Path) -> None:
    """`deepcopy`, `torch.save` and `torch.jit.script` work inside, and copies are not watched."""
    model, optimizer, loader = setup
    with gradtrace(model, loader=loader, directory=None, sampling=EVERYTHING) as trace:
        train(model, optimizer, loader)
        twin = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        scripted = torch.jit.script(model)
        x = torch.randn(3, 6)
        for copied in (twin, loaded, scripted):
            assert torch.equal(copied(x), model(x))
        train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), loader)
        copy.deepcopy(loader)
    assert len(trace.steps) == 6


TAPS = {
    "before_backward": "backward",
    "after_backward": "backward",
    "before_clip": "clipping",
    "after_clip": "clipping",
    "before_step": "optimizer",
    "after_step": "optimizer",
}
LOADER = ("begin", "delivered", "ended", "wants")


@pytest.mark.swallows
@pytest.mark.parametrize("method", [*TAPS, *LOADER])
def test_a_failing_tap_never_reaches_the_loop(
    setup: Any, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception inside any tap leaves training bitwise as it was, and is told once."""
    from gradtrace.collect.batches import Batches
    from gradtrace.collect.collector import Collector

    model, optimizer, loader = setup
    twin = copy.deepcopy(model)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), loader)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(Collector if method in TAPS else Batches, method, broken)
    caplog.set_level(logging.WARNING, "gradtrace")
    with gradtrace(model, loader=loader, directory=None) as trace:
        train(model, optimizer, loader)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    told = [note for note in trace.notes if "broken on purpose" in note.message]
    assert len(told) == 1 and TAPS.get(method, "loader") in told[0].message
    assert len([r for r in caplog.records if "broken on purpose" in r.getMessage()]) == 1


@pytest.mark.swallows
def test_a_failing_measurement_in_a_hook_never_reaches_the_loop(
    setup: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors in forward and backward hooks stay inside, too."""
    from gradtrace.measure.chunks import Accumulator

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(Accumulator, "add", broken)
    model, optimizer, loader = setup
    with gradtrace(model, loader=loader, directory=None, sampling=EVERYTHING) as trace:
        train(model, optimizer, loader)
    assert len(trace.steps) == 6
    assert len([n for n in trace.notes if "broken on purpose" in n.message]) == 1


@pytest.mark.slow
def test_a_thousand_traces_leak_nothing(tmp_path: Path) -> None:
    """1,000 traces in one process leave no thread, file or memory behind."""
    early, late = in_its_own_process(many_traces, tmp_path)
    assert late.threads <= early.threads and late.files <= early.files
    assert late.memory - early.memory < 20 << 20
    assert late.objects - early.objects < 2_000


@pytest.mark.slow
def test_ten_thousand_steps_hold_memory_still(tmp_path: Path) -> None:
    """A long run grows the process by less than 10 MB after warm-up."""
    early, late, dropped = in_its_own_process(many_steps, tmp_path)
    assert dropped == 0
    assert late.memory - early.memory < 10 << 20


def test_a_trace_starts_once(setup: Any) -> None:
    """Starting a trace twice is refused with a word on what to do; closing twice is harmless."""
    model, _, _ = setup
    trace: Trace = gradtrace(model, directory=None).start()
    with pytest.raises(RuntimeError, match=r"call gradtrace\(...\) again"):
        trace.start()
    trace.close()
    trace.close()
    with pytest.raises(RuntimeError, match="closed"):
        trace.start()


def test_a_forked_child_observes_nothing(setup: Any, tmp_path: Path) -> None:
    """In a forked process the wrappers pass everything through and write nothing."""
    model, optimizer, loader = setup
    with gradtrace(model, loader=loader, directory=tmp_path) as trace:
        train(model, optimizer, loader)
        trace.flush()
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            train(model, optimizer, loader)
            os._exit(0 if registry._installed else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert len(trace.steps) == 6
