"""A loop that is busy while nothing is recorded is told why; no other loop is told anything."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from patience import patience
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Trace, gradtrace
from gradtrace.session.activity import Activity
from gradtrace.session.silence import FEW, GAP, LONG, MANY, QUIET, WAIT, Silence, Why

HALF = 0.5
Turn = Callable[[Trace], object]
"""What a loop does again and again."""


class Clock:
    """A clock that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def driven(
    model: nn.Module | dict[str, nn.Module],
    turn: Turn,
    *,
    seconds: float = 30.0,
    every: float = HALF,
    **options: Any,
) -> Trace:
    """A trace of a loop whose turns take so long; the watch looks each half of a second."""
    clock = Clock()
    trace = gradtrace(model, directory=None, **options).start()
    running = trace._wiring
    assert running is not None and running.background is not None
    # Only this thread looks, so that what it sees is not a matter of time.
    running.background._tick = lambda: None
    running.silence = Silence(clock=clock)
    running._tick()
    due = 0.0
    while clock.now < seconds:
        if clock.now >= due:
            turn(trace)
            due += every
        clock.now += HALF
        running._tick()
    trace.close()
    return trace


def told(trace: Trace) -> list[str]:
    return [note.message for note in trace.notes if note.source in ("steps", "threads")]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def backward(model: nn.Module) -> None:
    model(torch.ones(3, 4)).square().mean().backward()


class Unknown:
    """An optimizer that torch does not know."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())

    def step(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


# -- what is told ---


def unknown_optimizer() -> tuple[nn.Module, Turn, str]:
    model = net()
    optimizer = Unknown(model)

    def turn(trace: Trace) -> None:
        optimizer.zero_grad()
        backward(model)
        optimizer.step()

    return model, turn, "its parameters have changed, but no torch optimizer"


def masters() -> tuple[nn.Module, Turn, str]:
    model = net()
    copies = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(copies, lr=0.01)

    def turn(trace: Trace) -> None:
        backward(model)
        for p, mine in zip(model.parameters(), copies, strict=True):
            mine.grad, p.grad = p.grad, None
        optimizer.step()
        with torch.no_grad():
            for p, mine in zip(model.parameters(), copies, strict=True):
                p.copy_(mine)

    return model, turn, "have changed, but no torch optimizer that holds them has stepped (2"


def other_parameters() -> tuple[nn.Module, Turn, str]:
    model = net()
    optimizer = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.01)

    def turn(trace: Trace) -> None:
        optimizer.zero_grad()
        backward(model)
        optimizer.step()

    return model, turn, "Optimizer(model.parameters())"


def fisher() -> tuple[nn.Module, Turn, str]:
    model = net()

    def turn(trace: Trace) -> None:
        model.zero_grad()
        backward(model)

    return (
        model,
        turn,
        "only looked at, or batches were dropped, nothing is missing",
    )


def a_copy() -> tuple[nn.Module, Turn, str]:
    model = net()
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)

    def turn(trace: Trace) -> None:
        optimizer.zero_grad()
        backward(trained)
        optimizer.step()

    return model, turn, "is this the model that is trained, and not a copy of it"


def an_average() -> tuple[nn.Module, Turn, str]:
    average, train, _ = a_copy()
    other = net()

    def turn(trace: Trace) -> None:
        train(trace)
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), other.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)

    return average, turn, "is this the model that is trained, and not a copy of it"


def frozen() -> tuple[nn.Module, Turn, str]:
    model = net().requires_grad_(False)
    head = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)

    def turn(trace: Trace) -> None:
        optimizer.zero_grad()
        head(model(torch.ones(1, 4))).sum().backward()
        optimizer.step()

    return model, turn, "all of which are frozen (requires_grad=False)"


def evolution() -> tuple[nn.Module, Turn, str]:
    model = net()

    def turn(trace: Trace) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))

    return model, turn, "changed again and again by code that is no torch optimizer"


def evolution_with_empty_steps() -> tuple[nn.Module, Turn, str]:
    model, move, _ = evolution()

    def turn(trace: Trace) -> None:
        move(trace)
        trace.step()

    return model, turn, "trace.step() was called 2"


def functional() -> tuple[nn.Module, Turn, str]:
    model = net()
    batches = endless()

    def turn(trace: Trace) -> None:
        torch.autograd.grad(model(next(batches)).sum(), list(model.parameters()))

    return model, turn, "batches were delivered with gradients enabled, and neither a backward"


def marked_once() -> tuple[nn.Module, Turn, str]:
    model, train = training()
    turns: list[int] = []

    def turn(trace: Trace) -> None:
        train(trace)
        turns.append(1)
        if len(turns) == 3:
            trace.step()

    return model, turn, "trace.step() was called before, so nothing else ends a step"


def added_up_for_ever() -> tuple[nn.Module, Turn, str]:
    model = net()

    def turn(trace: Trace) -> None:
        for _ in range(20):
            backward(model)

    return model, turn, "while gradients are added up that is as it should be"


TOLD = [
    unknown_optimizer, masters, other_parameters, fisher, a_copy, an_average, frozen, evolution,
    evolution_with_empty_steps, functional, marked_once, added_up_for_ever,
]  # fmt: skip


def endless() -> Iterator[Tensor]:
    loader = DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=2)
    while True:
        for (x,) in loader:
            yield x


@pytest.mark.parametrize("loop", TOLD)
def test_a_busy_loop_without_records_is_told_why(
    loop: Callable[[], tuple[nn.Module, Turn, str]],
) -> None:
    """Within little more than ten seconds, once, with what was seen and the line that mends it."""
    model, turn, words = loop()
    seen: list[float] = []

    def noticed(trace: Trace) -> None:
        turn(trace)
        if told(trace):
            assert trace._wiring is not None
            seen.append(trace._wiring.silence._clock())

    trace = driven(model, noticed)
    [message] = told(trace)
    assert words in message
    assert "gradtrace(" in message or "trace.step()" in message
    assert seen[0] <= QUIET + 2.5  # some loops have records at first


def test_an_optimizer_that_never_ends_the_step_is_told() -> None:
    """`step_after` that does not step again is named, and nothing else is blamed later."""
    model = net()
    last = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def turn(trace: Trace) -> None:
        optimizer.zero_grad()
        backward(model)
        optimizer.step()

    trace = driven(model, turn, step_after=last)
    [message] = told(trace)
    assert "step_after, a Adam, has not stepped" in message and "others have" in message


def test_training_in_another_thread_is_told() -> None:
    """Backwards of another thread are not looked at; that the parameters move is seen."""
    model = net()
    optimizer = Unknown(model)

    def train() -> None:
        optimizer.zero_grad()
        backward(model)
        optimizer.step()

    def turn(trace: Trace) -> None:
        thread = threading.Thread(target=train)
        thread.start()
        thread.join(patience(60))

    [message] = told(driven(model, turn))
    assert "in another thread than the one that began the trace" in message


# -- what is not ---


def training() -> tuple[nn.Module, Turn]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def turn(trace: Trace) -> None:
        optimizer.zero_grad()
        backward(model)
        optimizer.step()

    return model, turn


def evaluating() -> tuple[nn.Module, Turn]:
    model = net()
    batches = endless()

    def turn(trace: Trace) -> None:
        with torch.no_grad():
            model(next(batches))

    return model, turn


def evaluating_after_training() -> tuple[nn.Module, Turn]:
    """Gradients were left enabled, as they often are."""
    model, train = training()
    batches = endless()
    turns: list[int] = []

    def turn(trace: Trace) -> None:
        turns.append(1)
        if len(turns) < 10:
            train(trace)
        else:
            model(next(batches))

    return model, turn


def other_model_after_training() -> tuple[nn.Module, Turn]:
    model, train = training()
    _, train_other = training()
    turns: list[int] = []

    def turn(trace: Trace) -> None:
        turns.append(1)
        (train if len(turns) < 10 else train_other)(trace)

    return model, turn


def stepping_by_hand() -> tuple[nn.Module, Turn]:
    model = net()

    def turn(trace: Trace) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        trace.log(loss=1.0)
        trace.step()

    return model, turn


def evaluating_a_closure() -> tuple[nn.Module, Turn]:
    """One step of LBFGS that takes a minute."""
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    turns: list[int] = []

    def turn(trace: Trace) -> None:
        if turns:
            return
        turns.append(1)
        running = trace._wiring
        assert running is not None
        clock = running.silence._clock
        assert isinstance(clock, Clock)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = model(torch.randn(3, 4)).square().mean()
            loss.backward()
            clock.now += 3
            running._tick()
            return loss

        optimizer.step(closure)

    return model, turn


def idle() -> tuple[nn.Module, Turn]:
    return net(), lambda trace: None


SILENT = [
    training, evaluating, evaluating_after_training, other_model_after_training, stepping_by_hand,
    evaluating_a_closure, idle,
]  # fmt: skip


@pytest.mark.parametrize("loop", SILENT)
def test_nobody_else_is_blamed(loop: Callable[[], tuple[nn.Module, Turn]]) -> None:
    """A loop that has its records, or asks for none, gets no note, however long it runs."""
    model, turn = loop()
    assert told(driven(model, turn, seconds=90.0)) == []


def test_slow_steps_are_healthy() -> None:
    """A minute a step, made of many backwards: records come regularly, and that is all."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    turns: list[int] = []

    def turn(trace: Trace) -> None:
        backward(model)
        turns.append(1)
        if len(turns) % 60 == 0:
            optimizer.step()
            optimizer.zero_grad()

    trace = driven(model, turn, seconds=400.0, every=1.0)
    assert len(trace.steps) == 6 and told(trace) == []


def test_a_step_of_one_backward_may_take_minutes() -> None:
    """The first one too: a single backward is no activity that goes on."""
    model, turn = training()
    trace = driven(model, turn, seconds=600.0, every=200.0)
    assert len(trace.steps) == 3 and told(trace) == []


def test_two_threads_that_train_other_models_are_not_mixed_up() -> None:
    """A trace whose thread waits says nothing about another thread's backwards."""
    _, train = training()

    def turn(trace: Trace) -> None:
        thread = threading.Thread(target=train, args=(trace,))
        thread.start()
        thread.join(patience(60))

    assert told(driven(net(), turn)) == []


# -- the watch itself ---


def test_each_reason_is_told_once_and_the_first_is_believed() -> None:
    """A later reason that would answer too is not asked while an earlier one has an answer."""
    clock, asked = Clock(), []

    def first(silent: Any) -> Why | None:
        return ("a", "first") if silent.backwards < 5 else WAIT

    def second(silent: Any) -> Why | None:
        asked.append(silent.backwards)
        return "b", "second"

    watch = Silence(clock=clock, reasons=(first, second))
    found = [watch.look(Activity(backwards=k)) for k in range(9)]
    assert found == [None, ("a", "first"), *[None] * 7] and asked == [] and watch.told


def test_time_counts_while_something_happens() -> None:
    """A pause between two cells of a notebook is no activity, whatever its length."""
    clock = Clock()
    watch = Silence(clock=clock)
    seen = Activity(backwards=1, lost=1)
    watch.look(Activity())
    turns = 0
    while True:
        turns += 1
        seen = replace(seen, backwards=seen.backwards + 1, lost=seen.lost + 1)
        clock.now += 3600
        if watch.look(seen) is not None:
            break
    assert turns == QUIET / GAP >= FEW


def test_the_last_records_set_the_patience() -> None:
    """Where records took half a minute, a silence of a minute is none yet."""
    clock = Clock()
    watch = Silence(clock=clock)
    now = Activity()

    def until(seconds: float) -> Why | None:
        nonlocal now
        end, why = clock.now + seconds, None
        while clock.now < end and why is None:
            clock.now += 1
            now = replace(now, backwards=now.backwards + 1, lost=now.lost + 1, moved=now.moved + 1)
            why = watch.look(now)
        return why

    watch.look(now)
    assert until(QUIET - 1) is None
    now = replace(now, records=1)
    assert until(3 * QUIET - 5) is None  # the look that sees the record begins anew
    now = replace(now, records=2)
    assert until(6 * QUIET) is None
    why = until(10 * QUIET)
    assert why is not None and why[1].startswith("since step 1 no step was recorded")


@pytest.mark.parametrize(
    ("each", "after"), [(1, LONG), (MANY, QUIET)], ids=["few backwards", "many backwards"]
)
def test_what_may_be_a_long_step_is_told_late(each: int, after: float) -> None:
    """Sums of gradients that nothing has touched are most probably a step under way."""
    clock = Clock()
    watch = Silence(clock=clock)
    for k in range(10_000):
        if watch.look(Activity(backwards=k * each)) is not None:
            break
        clock.now += 1
    assert clock.now == after


def test_the_background_thread_looks_by_itself() -> None:
    """The note is there while the run goes on, and the end of the run does not repeat it."""
    clock = Clock()
    model, turn, words = unknown_optimizer()
    with gradtrace(model, directory=None) as trace:
        assert trace._wiring is not None
        trace._wiring.silence = Silence(clock=clock)
        while not told(trace):
            turn(trace)
            clock.now += 1
            assert clock.now < 100
            assert trace.flush(patience(60))
    [message] = told(trace)
    assert words in message
