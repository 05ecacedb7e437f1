"""Loops in several threads of a process: each trace tells its own, and none disturbs another."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from patience import patience
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Sampling, Trace, gradtrace
from gradtrace.taps.patches import registry

EVERYTHING = Sampling(activations=7, updates=7)


@dataclass
class Loop:
    """A model and what its loop writes down itself; everything is drawn from its own seed."""

    seed: int
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    batches: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        x = torch.randn(40, 6, generator=generator)
        self.loader = DataLoader(
            TensorDataset(x, torch.arange(40)),
            batch_size=4,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def step(self, x: Tensor, ids: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = self.model(x).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.norms.append(norm.item())
        self.batches.append(tuple(ids.tolist()))

    def train(self, steps: int) -> None:
        while len(self.losses) < steps:
            for x, ids in self.loader:
                self.step(x, ids)

    def traced(self, steps: int) -> Trace:
        with gradtrace(
            self.model, loader=self.loader, directory=None, sampling=EVERYTHING
        ) as trace:
            self.train(steps)
        return trace

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


def bare(seed: int, steps: int) -> Loop:
    """The same loop alone, without a trace."""
    loop = Loop(seed)
    loop.train(steps)
    return loop


def at_once(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each returned, in a thread of its own; they begin together. Errors come out."""
    results: dict[int, Any] = {}
    errors: list[BaseException] = []
    gate = threading.Barrier(len(functions))

    def run(k: int) -> None:
        try:
            gate.wait(patience(30))
            results[k] = functions[k]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(120))
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return [results[k] for k in range(len(functions))]


def check(loop: Loop, trace: Trace) -> None:
    """All that the trace tells is what the loop wrote down."""
    steps = trace.steps
    assert [s.loss for s in steps] == pytest.approx(loop.losses, rel=1e-6)
    assert [s.grad_norm for s in steps] == pytest.approx(loop.norms, rel=1e-5)
    assert [[b.sample_ids for b in s.batches] for s in steps] == [[ids] for ids in loop.batches]
    assert [[b.ordinal for b in s.batches] for s in steps] == [[k] for k in range(len(steps))]
    assert [note.message for note in trace.notes] == []


def same_weights(loop: Loop, other: Loop) -> bool:
    return all(map(torch.equal, loop.weights(), other.weights()))


CASES = [(2, 0), (4, 0), (1, 3)]


def round_of(traced: int, untraced: int, steps: int) -> None:
    loops = [Loop(seed) for seed in range(traced + untraced)]
    traces = at_once(
        [functools.partial(loop.traced, steps) for loop in loops[:traced]]
        + [functools.partial(loop.train, steps) for loop in loops[traced:]]
    )[:traced]
    for loop in loops:
        assert same_weights(loop, bare(loop.seed, steps))
    for loop, trace in zip(loops, traces, strict=False):
        check(loop, trace)
    assert not registry._installed


@pytest.mark.parametrize(("traced", "untraced"), CASES)
def test_each_trace_tells_its_own_loop(traced: int, untraced: int) -> None:
    """Losses, norms and batches are those of its loop, and no loop is changed."""
    round_of(traced, untraced, steps=100)


@pytest.mark.slow
@pytest.mark.parametrize(("traced", "untraced"), CASES)
def test_each_trace_tells_its_own_loop_every_time(traced: int, untraced: int) -> None:
    """Twenty runs of 300 steps."""
    for _ in range(20):
        round_of(traced, untraced, steps=300)


def test_traces_come_and_go_beside_a_loop() -> None:
    """A thread that trains meanwhile, traced itself, is not disturbed and tells the truth."""
    loop, done = Loop(0), threading.Event()

    def train() -> Trace:
        try:
            return loop.traced(200)
        finally:
            done.set()

    def come_and_go() -> int:
        count = 0
        while not done.is_set() or not count:
            Loop(1).traced(10)
            count += 1
        return count

    trace, count = at_once([train, come_and_go])
    assert count and same_weights(loop, bare(0, 200))
    check(loop, trace)


def test_a_trace_closes_while_another_thread_is_in_its_backward() -> None:
    """The backward that is under way ends, and what it led to is told by its own trace only."""
    inside, closed = threading.Event(), threading.Event()
    loop = Loop(0)

    def wait(gradient: Tensor) -> None:
        inside.set()
        assert closed.wait(patience(30))

    def train() -> Trace:
        with gradtrace(loop.model, loader=loop.loader, directory=None) as trace:
            loop.train(10)
            handle = list(loop.model.parameters())[-1].register_hook(wait)
            for x, ids in loop.loader:
                loop.step(x, ids)
                handle.remove()
        return trace

    def come_and_go() -> Trace:
        other = Loop(1)
        with gradtrace(other.model, directory=None) as early:
            other.train(10)
            assert inside.wait(patience(30))
        Loop(2).traced(10)
        closed.set()
        return early

    trace, early = at_once([train, come_and_go])
    check(loop, trace)
    assert len(early.steps) == 10 and same_weights(loop, bare(0, 20))


def test_an_evaluation_in_another_thread_is_no_training() -> None:
    """Forwards without gradients, over a loader of the same dataset, beside the loop."""
    loop, done, begun = Loop(0), threading.Event(), threading.Event()

    def train() -> Trace:
        assert begun.wait(patience(30))
        try:
            return loop.traced(200)
        finally:
            done.set()

    def evaluate() -> None:
        other = DataLoader(loop.loader.dataset, batch_size=8)
        while not done.is_set():
            with torch.no_grad():
                for x, _ in other:
                    loop.model(x)
                    begun.set()

    trace, _ = at_once([train, evaluate])
    assert same_weights(loop, bare(0, 200))
    check(loop, trace)


def test_threads_that_share_parameters_are_told() -> None:
    """Hogwild: no step is recorded once it shows, a note says so, and nothing breaks."""
    loop = Loop(0)
    others = [torch.optim.SGD(loop.model.parameters(), lr=0.001) for _ in range(3)]
    gate = threading.Barrier(3)

    def train(optimizer: torch.optim.Optimizer) -> None:
        # Each computes on a replica: torch refuses a backward through what another has moved.
        replica = copy.deepcopy(loop.model)
        for _ in range(100):
            loss = replica(torch.ones(4, 6)).square().mean()
            gradients = torch.autograd.grad(loss, list(replica.parameters()))
            for parameter, gradient in zip(loop.model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            replica.load_state_dict(loop.model.state_dict())
        gate.wait(patience(30))  # all live until all have trained

    with gradtrace(loop.model, directory=None) as trace:
        at_once([functools.partial(train, one) for one in others])
    assert any("several threads train these parameters" in note.message for note in trace.notes)
    assert len(trace.steps) < 300


@pytest.mark.slow
def test_trials_of_a_study_run_side_by_side() -> None:
    """Optuna with two jobs, a trace in each trial."""
    optuna = pytest.importorskip("optuna")
    told: list[tuple[Loop, Trace]] = []

    def objective(trial: Any) -> float:
        loop = Loop(trial.number)
        told.append((loop, loop.traced(100)))
        return loop.losses[-1]

    study = optuna.create_study()
    study.optimize(objective, n_trials=6, n_jobs=2)
    assert len(told) == 6
    for loop, trace in told:
        check(loop, trace)
        assert same_weights(loop, bare(loop.seed, 100))
