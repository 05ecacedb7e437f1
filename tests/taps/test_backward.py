"""Each backward that accumulates is told once, however it is spelled; its loss is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradtrace.taps.backward import backward_target, comes_from, described, in_backward, loss_of
from gradtrace.taps.patches import registry


class Watching:
    """Remembers what it is told, and the gradient of a parameter then."""

    def __init__(self) -> None:
        self.parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.told: list[tuple[str, Any, Any]] = []
        self.inputs: list[Any] = []
        self.losses: list[Tensor | None] = []

    @property
    def loss(self) -> Tensor:
        return (self.parameter * torch.tensor([3.0, 4.0])).sum()

    def _grad(self) -> Any:
        grad = self.parameter.grad
        return None if grad is None else grad.tolist()

    def before_backward(self, outputs: tuple[Tensor, ...]) -> Any:
        self.told.append(("before", len(outputs), self._grad()))
        return f"token {len(self.told)}"

    def after_backward(
        self,
        outputs: tuple[Tensor, ...],
        weights: tuple[Any, ...],
        inputs: tuple[Any, ...],
        token: Any,
    ) -> None:
        self.told.append(("after", token, self._grad()))
        self.inputs.append(inputs)
        self.losses.append(loss_of(outputs, weights))

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.told]


@pytest.fixture
def watching() -> Iterator[Watching]:
    observer = Watching()
    end = registry.attach(backward_target(), observer)
    yield observer
    end()


SPELLINGS: dict[str, Callable[[Watching], Any]] = {
    "method": lambda w: w.loss.backward(),
    "retained": lambda w: w.loss.backward(retain_graph=True),
    "function": lambda w: torch.autograd.backward(w.loss),
    "list": lambda w: torch.autograd.backward([w.loss]),
    "inputs": lambda w: w.loss.backward(inputs=[w.parameter]),
    "gradient": lambda w: (w.parameter * 1.0).backward(torch.tensor([3.0, 4.0])),
    "second order": lambda w: w.loss.backward(create_graph=True),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_each_spelling_is_told_before_and_after(watching: Watching, spelling: str) -> None:
    """Before there is no gradient yet, after there is; what the first returned comes back."""
    SPELLINGS[spelling](watching)
    assert watching.told == [("before", 1, None), ("after", "token 1", [3.0, 4.0])]


def test_several_outputs_are_one_backward(watching: Watching) -> None:
    """Two losses at once are told as one call with two outputs."""
    torch.autograd.backward([watching.loss, watching.loss * 2])
    assert watching.told == [("before", 2, None), ("after", "token 1", [9.0, 12.0])]


def test_gradients_that_are_returned_are_not_told(watching: Watching) -> None:
    """`torch.autograd.grad` leaves every `.grad` alone."""
    [gradient] = torch.autograd.grad(watching.loss, [watching.parameter])
    assert gradient.tolist() == [3.0, 4.0] and watching.told == []


def test_a_backward_inside_a_compiled_region_is_not_told(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the compiler traces, it runs as torch's own."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    watching.loss.backward()
    assert watching.told == []
    assert watching.parameter.grad is not None
    assert watching.parameter.grad.tolist() == [3.0, 4.0]


def test_a_backward_that_raises_is_not_finished(watching: Watching) -> None:
    """The exception comes out as it was, and there is no end to tell."""
    error = KeyError("mine")

    def broken(gradient: Tensor) -> None:
        raise error

    hooked = watching.parameter * 1.0
    hooked.register_hook(broken)
    with pytest.raises(KeyError) as caught:
        hooked.sum().backward()
    assert caught.value is error and watching.names == ["before"]
    watching.loss.backward()
    assert watching.names == ["before", "before", "after"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_only_the_outermost_is_told(watching: Watching, reentrant: bool) -> None:
    """A backward inside a backward, as reentrant checkpoints run it, is part of the outer one."""

    def part(x: Tensor) -> Tensor:
        return (x * watching.parameter).sin()

    inputs = torch.ones(2, requires_grad=True)
    output: Tensor = checkpoint(part, inputs, use_reentrant=reentrant)
    output.sum().backward()
    assert watching.names == ["before", "after"]


def test_inside_is_told_from_outside(watching: Watching) -> None:
    """`in_backward` is true in a hook that backward calls, and nowhere else."""
    found: list[bool] = []
    hooked = watching.parameter * 1.0
    hooked.register_hook(lambda gradient: found.append(in_backward()))
    assert not in_backward()
    hooked.sum().backward()
    assert found == [True] and not in_backward()


def test_nobody_watches_afterwards() -> None:
    """Once the observer is gone torch has its own function back."""
    autograd: Any = torch.autograd
    before = autograd._engine_run_backward
    observer = Watching()
    end = registry.attach(backward_target(), observer)
    assert autograd._engine_run_backward is not before
    end()
    assert autograd._engine_run_backward is before
    observer.loss.backward()
    assert observer.told == []


@pytest.mark.parametrize(
    ("owner", "name"),
    [(torch.autograd, "_engine_run_backward"), (torch._C, "_current_graph_task_id")],
)
def test_another_torch_is_told(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that has one of the functions under another name raises, with the name."""
    monkeypatch.delattr(owner, name)
    with pytest.raises(AttributeError, match=name):
        backward_target()


def test_a_loss_is_a_copy() -> None:
    """What the loop does to its loss later does not change the number, and no graph is kept."""
    loss = torch.tensor(2.0, requires_grad=True) * 1.5
    found = loss_of((loss,))
    with torch.no_grad():
        loss.mul_(100)
    assert found is not None
    assert float(found) == 3.0 and not found.requires_grad and found.grad_fn is None


def test_losses_are_added() -> None:
    """Several are one loss, of whatever shape each single value has; more values are none."""
    one, two = torch.tensor(1.25), torch.tensor([[2.5]])
    found = loss_of((one, two))
    assert found is not None and float(found) == 3.75 and float(one) == 1.25
    assert found.shape == ()
    assert loss_of((one, torch.ones(2))) is None
    assert loss_of(()) is None


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0, 0.01], 4.04), ([None, 0.5], 6.0), ([0.0, None], 4.0), ([None, None], 8.0)],
)
def test_losses_have_their_weights(
    watching: Watching, weights: list[float | None], expected: float
) -> None:
    """What `torch.autograd.backward` was given as gradients of losses multiplies them."""
    losses = [watching.parameter.sum() + 1.0, watching.parameter.square().sum() - 1.0]
    given: Any = [None if w is None else torch.tensor(w) for w in weights]
    torch.autograd.backward(losses, given)
    [found] = watching.losses
    assert found is not None and float(found) == pytest.approx(expected, rel=1e-6)


def test_what_shows_no_loss_is_described() -> None:
    """In words that tell a GradientEdge from tensors of some shape."""
    parameter = torch.ones(2, requires_grad=True)
    edge = torch.autograd.graph.get_gradient_edge(parameter * 2)
    assert loss_of((edge,)) is None
    assert described((edge,)) == "a GradientEdge"
    assert described((torch.ones(2),)) == "a tensor of shape (2,)"
    assert described([torch.ones(2), torch.ones(())]) == "tensors of shape (2,), ()"


class Named(Tensor):
    """A subclass as users write them."""


def test_a_subclass_is_read_as_a_plain_tensor() -> None:
    """A loss of a subclass without parts is its value, and the result is no subclass."""
    found = loss_of((torch.tensor(4.0).as_subclass(Named),))
    assert type(found) is Tensor and float(found) == 4.0


def test_of_sharded_losses_only_whole_ones_are_read() -> None:
    """A DTensor that is the same on all ranks is read; a part of a sum is none, nor two parts."""
    dist: Any = torch.distributed
    if not dist.is_available():
        pytest.skip("this torch is built without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = DTensor.from_local(torch.tensor(4.0), mesh, [Replicate()])
        part = DTensor.from_local(torch.tensor(4.0), mesh, [Partial()])
        found = loss_of((whole,))
        assert type(found) is Tensor and float(found) == 4.0
        assert loss_of((part,)) is None
        assert loss_of((whole, part)) is None
    finally:
        dist.destroy_process_group()


def test_what_gradients_are_confined_to_is_told(watching: Watching) -> None:
    """The tensors of `inputs=`, nothing where gradients go everywhere."""
    watching.loss.backward()
    watching.loss.backward(inputs=[watching.parameter])
    assert [list(one) for one in watching.inputs] == [[], [watching.parameter]]


@pytest.mark.parametrize("used", [True, False])
def test_a_graph_tells_what_it_came_from(used: bool) -> None:
    """Before and after its backward, through containers of outputs; constants have no graph."""
    one, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    outputs = [torch.ones(1), (other.sin() * (one if used else 1.0)).sum()]
    for _ in range(2):
        assert comes_from(outputs, lambda leaf: leaf is one) == used
        assert comes_from(outputs, lambda leaf: leaf is other)
        outputs[1].backward(retain_graph=True)
    assert not comes_from([torch.ones(1), None], lambda leaf: True)


def test_a_long_graph_is_not_walked_to_its_end() -> None:
    """A leaf far away is not found, in bounded time."""
    leaf = value = torch.ones(1, requires_grad=True)
    for _ in range(3000):
        value = value + 1
    assert not comes_from([value], lambda one: one is leaf)
