"""What taps see reaches the collector; what cannot be watched is noted, and the rest is."""

from __future__ import annotations

import math
import threading
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from places import patched_places
from ranks import alone
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader, TensorDataset

from gradtrace.collect.batches import Batches, Stream
from gradtrace.collect.observer import Observer
from gradtrace.collect.trainer import Trainer
from gradtrace.guard import Guard
from gradtrace.sampling import Due, Sampling
from gradtrace.taps import backward, clipping, loaders, optimizers

DUE = Sampling(activations=1).due(0)


class Heard:
    """A collector that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.outputs = _Outputs()
        self.borders = self
        self.armed: Any = None
        self.trainer = Trainer(lambda source, text: None)

    def on_open(self, callback: Any) -> None:
        self.armed = callback
        callback(DUE._replace(activations=False))

    def delivered(self) -> None:
        assert self.trainer.here()

    def zeroed(self, owner: Any) -> None:
        self.calls.append(("zeroed", None))

    def before_backward(self) -> str:
        return "token"

    def after_backward(self, token: Any, loss: Any, scale: Any, *, aside: Any) -> bool:
        self.calls.append(("backward", (token, number(loss), number(scale))))
        return True

    def before_clip(self, parameters: Any) -> tuple[int, ...]:
        return tuple(range(len(list(parameters))))

    def after_clip(self, call: Any) -> None:
        norm = None if call.norm is None else float(call.norm.tensor)
        self.calls.append((call.kind, (call.positions, call.threshold, norm, call.order)))

    def before_step(self, optimizer: Any, *, closure: bool, in_backward: bool) -> bool:
        self.calls.append(("before step", (closure, in_backward)))
        return True

    def after_step(self, optimizer: Any, *, closure: bool, in_backward: bool) -> None:
        self.calls.append(("after step", (closure, in_backward)))

    def unscaled(self, optimizer: Any, scale: Any) -> None:
        self.calls.append(("unscaled", number(scale)))

    def before_scaler_step(self, optimizer: Any, scale: Any) -> bool:
        self.calls.append(("before scaler step", number(scale)))
        return True

    def after_scaler_step(self, optimizer: Any, *, skipped: bool) -> None:
        self.calls.append(("after scaler step", skipped))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


class HeardBatches(Batches):
    """Batches that are written down when they are delivered."""

    calls: list[tuple[str, Any]]

    def delivered(self, stream: Stream, indices: Any, data: Any) -> None:
        super().delivered(stream, indices, data)
        batch = stream.held[-1].batch
        self.calls.append(("batch", (batch.epoch, batch.batch_index, batch.sample_ids)))


class _Outputs:
    def __init__(self) -> None:
        self.activations = self.output_gradients = _Accumulator()
        self.module_names: list[str] = []


class _Accumulator:
    def __init__(self) -> None:
        self.added: list[int] = []

    def add(self, position: int, tensor: Any) -> bool:
        self.added.append(position)
        return True

    def again(self, position: int) -> None:
        self.added.append(position)


def number(value: Any) -> float | None:
    return None if value is None else float(value)


class Watching:
    """An observer that is attached, and what it heard and noted."""

    def __init__(self, stack: ExitStack, *loaders_: Any, model: nn.Module | None = None) -> None:
        self.model = nn.Linear(2, 1) if model is None else model
        self.heard = Heard()
        self.notes: list[str] = []

        def note(source: str, text: str) -> None:
            self.notes.append(f"{source}: {text}")

        collector: Any = self.heard
        batches = HeardBatches(None, note, loaders=loaders_)
        batches.calls = self.heard.calls
        self.observer = Observer(
            collector, {"": self.model}, Sampling(), Guard(note), note, batches
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.observer.attach(stack)

    def loss(self) -> torch.Tensor:
        loss: torch.Tensor = self.model(torch.ones(1, 2)).sum()
        return loss


def test_a_loop_is_told_in_its_order() -> None:
    """Batch, backward with its loss, clips with their limits, step: each as the loop did it."""
    loader = DataLoader(TensorDataset(torch.zeros(4, 2)), batch_size=2)
    with ExitStack() as stack:
        watching = Watching(stack, loader)
        for _ in loader:
            loss = watching.loss()
            loss.backward()
            norm = clip_grad_norm_(watching.model.parameters(), 0.5, norm_type=1.0)
            clip_grad_value_(watching.model.parameters(), 0.25)
            watching.optimizer.step()
            break
    assert watching.heard.calls == [
        ("batch", (0, 0, (0, 1))),
        ("backward", ("token", float(loss.detach()), None)),
        ("norm", ((0, 1), 0.5, float(norm), 1.0)),
        ("value", ((0, 1), 0.25, None, 2.0)),
        ("before step", (False, False)),
        ("after step", (False, False)),
    ]
    assert watching.observer.delivered_batches == 1 and watching.notes == []


def test_a_scaler_is_told_around_the_step() -> None:
    """Losses are the raw ones; a step that the scaler keeps back is told as skipped."""
    with ExitStack() as stack:
        watching = Watching(stack)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for factor in (1.0, float("inf")):
            watching.optimizer.zero_grad()
            loss = watching.loss() * factor
            scaler.scale(loss).backward()
            scaler.unscale_(watching.optimizer)
            scaler.step(watching.optimizer)
            scaler.update()
    names = watching.heard.names()
    assert names == [
        *("zeroed", "backward", "unscaled", "before scaler step", "before step", "after step"),
        *("after scaler step", "zeroed", "backward", "unscaled"),
        *("before scaler step", "after scaler step"),
    ]
    told = dict(watching.heard.calls)
    assert told["backward"][2] == 8.0 and told["unscaled"] == 8.0
    assert [v for n, v in watching.heard.calls if n == "after scaler step"] == [False, True]


def test_a_closure_is_told() -> None:
    """Its backward, and the zeroing before it, lie within the step."""
    with ExitStack() as stack:
        watching = Watching(stack)

        def closure() -> float:
            watching.optimizer.zero_grad()
            loss = watching.loss()
            loss.backward()
            return float(loss.detach())

        watching.optimizer.step(closure)
    assert watching.heard.names() == ["before step", "zeroed", "backward", "after step"]
    assert watching.heard.calls[0][1] == (True, False)


def test_a_limit_that_is_a_tensor_is_kept_as_it_was() -> None:
    """What changes it later does not change what is told."""
    limit = torch.tensor(0.5)
    with ExitStack() as stack:
        watching = Watching(stack)
        watching.loss().backward()
        clip_grad_norm_(watching.model.parameters(), limit)  # type: ignore[arg-type]
    limit.fill_(9.0)
    [(_, (_, threshold, _, _))] = watching.heard.calls[1:]
    assert float(threshold.tensor) == 0.5


def test_modules_are_watched_while_armed() -> None:
    """Only on the steps that measure activations does the global hook stand."""
    before = patched_places()["forward"]
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with ExitStack() as stack:
        watching = Watching(stack, model=model)
        watching.loss()
        assert watching.heard.outputs.module_names == [] and patched_places()["forward"] == before
        due: Due = DUE
        watching.heard.armed(due)
        watching.loss()
        assert watching.heard.outputs.module_names == ["0", "1"]
        assert watching.observer.forward_order() == {"0": 0, "1": 1}
    assert patched_places()["forward"] == before


def test_any_iterable_can_be_watched() -> None:
    """A list has no ids and keeps its items; a DataLoader has the ids it always has."""
    loader = DataLoader(TensorDataset(torch.zeros(3, 2)), batch_size=2)
    with ExitStack() as stack:
        watching = Watching(stack)
        items = [object(), object()]
        for _ in range(2):
            assert all(a is b for a, b in zip(watching.observer.batches(items), items, strict=True))
        for _ in watching.observer.batches(loader):
            pass
        for _ in loader:  # once asked for, it is watched
            pass
    assert [place for _, place in watching.heard.calls] == [
        *((0, 0, None), (0, 1, None), (1, 0, None), (1, 1, None)),
        *((0, 0, (0, 1)), (0, 1, (2,)), (1, 0, (0, 1)), (1, 1, (2,))),
    ]


def test_a_loader_that_another_thread_iterates_is_not_watched() -> None:
    """Which of its batches a backward had cannot be known."""
    loader = DataLoader(TensorDataset(torch.zeros(4, 2)), batch_size=2)
    with ExitStack() as stack:
        watching = Watching(stack, loader)
        watching.heard.trainer.trains()
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(watching.observer.wants(loader)))
        thread.start()
        thread.join()
        found.append(watching.observer.wants(loader))
    assert found == [False, True]


def missing(*args: Any, **kwargs: Any) -> Any:
    raise AttributeError("no such name")


@pytest.mark.parametrize(
    ("module", "name", "source"),
    [
        (backward, "backward_target", "losses"),
        (clipping, "closure", "clip_grad_norm_"),
        (loaders, "attach", "batches"),
    ],
)
def test_a_torch_that_differs_costs_what_differs(
    module: Any, name: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be found is noted with torch's version; everything else is watched as ever."""
    monkeypatch.setattr(module, name, missing)
    loader = DataLoader(TensorDataset(torch.zeros(2, 2)), batch_size=2)
    with ExitStack() as stack:
        watching = Watching(stack, loader)
        for _ in loader:
            watching.loss().backward()
            clip_grad_norm_(watching.model.parameters(), 0.5)
            watching.optimizer.step()
    assert watching.notes[0].startswith(f"{source}: torch {torch.__version__} differs here")
    expected = {"batch", "backward", "norm", "before step", "after step"}
    lost = {"losses": {"backward"}, "batches": {"batch"}}.get(source, {"norm"})
    assert set(watching.heard.names()) == expected - lost


def test_the_stack_undoes_what_was_done_when_a_tap_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tap is taken back with the stack, however far attaching came."""
    before = patched_places()

    def refuse(observer: Any) -> Any:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(optimizers, "attach", refuse)
    with pytest.raises(RuntimeError, match="on purpose"), ExitStack() as stack:
        Watching(stack)
    assert patched_places() == before


@pytest.mark.swallows
def test_an_error_of_the_collector_stops_at_the_guard(internal_errors: list[Exception]) -> None:
    """The loop goes on, and what failed once is left out of its pair."""
    with ExitStack() as stack:
        watching = Watching(stack)

        def broken() -> Any:
            raise ValueError("on purpose")

        watching.heard.before_backward = broken  # type: ignore[method-assign]
        watching.loss().backward()
        watching.optimizer.step()
    assert watching.heard.names() == ["before step", "after step"]
    assert [str(error) for error in internal_errors] == ["on purpose"]


@pytest.mark.parametrize("placement", ["replicate", "partial"])
def test_a_total_norm_is_told_where_it_is_known(placement: str) -> None:
    """A summand of it is no norm, and asking for the sum would be a collective."""
    with ExitStack() as stack:
        make = stack.enter_context(alone())
        watching = Watching(stack)
        watching.loss().backward()
        norm = make(torch.tensor(2.0), placement)
        watching.observer._after_norm_clip((0,), make(torch.tensor(0.5), placement), norm, 2.0)
    [_, (_, (_, threshold, told, _))] = watching.heard.calls[-2:]
    assert (told is None) == (placement == "partial")
    assert told in (None, 2.0)
    assert math.isnan(threshold) if placement == "partial" else float(threshold.tensor) == 0.5
