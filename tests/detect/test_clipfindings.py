"""Clipping, judged: what is told, once, and what is not, on real loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from gradtrace import ClipFinding, Sampling, gradtrace

EVERYTHING = Sampling(activations=0, updates=1)


def findings(
    loop: Callable[[nn.Module, torch.optim.Optimizer, Iterator[int]], None], steps: int = 30
) -> dict[str, ClipFinding]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradtrace(model, directory=None, sampling=EVERYTHING, spikes=None) as trace:
        loop(model, optimizer, iter(range(steps)))
    found = [event for event in trace.events if isinstance(event, ClipFinding)]
    assert len({event.finding for event in found}) == len(found)
    return {event.finding: event for event in found}


def backward(model: nn.Module, *, times: float = 1.0) -> None:
    loss = model(torch.randn(16, 6)).square().mean() * times
    loss.backward()


def clip(model: nn.Module, norm: float) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), norm)


def test_an_ordinary_loop_has_nothing_to_tell(internal_errors: list[Exception]) -> None:
    """Clipping now and then, between backward and step."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        for step in steps:
            optimizer.zero_grad()
            backward(model, times=10.0 if step % 10 == 0 else 1.0)
            clip(model, 1.0)
            optimizer.step()

    assert findings(loop, 300) == {}
    assert internal_errors == []


def test_clipping_on_nearly_every_step_is_told_with_the_learning_rate_it_leaves() -> None:
    """The median coefficient times the learning rate, and the norms' percentiles."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        for _ in steps:
            optimizer.zero_grad()
            backward(model)
            clip(model, 0.01)
            optimizer.step()

    found = findings(loop, 250)
    assert set(found) == {"always"}
    evidence = found["always"].evidence
    assert evidence["share"] == 1.0 and evidence["steps"] == 200
    assert 0 < evidence["coefficient"] < 0.5
    assert evidence["effective_lr"] == pytest.approx(0.01 * evidence["coefficient"])
    assert evidence["p95"] <= evidence["p99"]
    assert f"A max_norm of {evidence['p95']:.3g}, the 95th percentile" in found["always"].message


def test_clipping_that_never_engages_is_told() -> None:
    """A threshold far above all norms, once there are enough of them."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        for _ in steps:
            optimizer.zero_grad()
            backward(model)
            clip(model, 1e4)
            optimizer.step()

    found = findings(loop, 510)
    assert set(found) == {"never"}
    assert found["never"].step == 499
    assert found["never"].evidence["threshold"] > 10 * found["never"].evidence["p99"] > 0


def test_an_infinite_threshold_scales_nothing() -> None:
    """A common way to get the norm: there is no clipping, and nothing to find."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        for _ in steps:
            optimizer.zero_grad()
            backward(model)
            clip(model, float("inf"))
            optimizer.step()

    assert findings(loop, 510) == {}


def test_clipping_after_the_step_is_told() -> None:
    """The gradients were used already."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        for _ in steps:
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
            clip(model, 1.0)

    assert set(findings(loop)) == {"after the step"}


def test_clipping_without_gradients_is_told() -> None:
    """After zero_grad, and with an iterator that was used up before."""

    def cleared(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        for _ in steps:
            backward(model)
            optimizer.step()
            optimizer.zero_grad()
            clip(model, 1.0)

    def used_up(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        parameters = model.parameters()
        list(parameters)
        for _ in steps:
            optimizer.zero_grad()
            backward(model)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    assert set(findings(cleared)) == {"no gradients"}
    assert set(findings(used_up)) == {"no gradients"}


def test_clipping_twice_is_told_and_clipping_in_parts_is_not() -> None:
    """The same parameters twice; two halves of a model are no repetition."""

    def twice(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        for _ in steps:
            optimizer.zero_grad()
            backward(model)
            clip(model, 2.0)
            clip(model, 1.0)
            optimizer.step()

    def parts(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        assert isinstance(model, nn.Sequential)
        for _ in steps:
            optimizer.zero_grad()
            backward(model)
            clip(model[0], 1.0)
            clip(model[2], 1.0)
            optimizer.step()

    assert set(findings(twice)) == {"twice"}
    assert findings(parts) == {}


def test_clipping_scaled_gradients_is_told() -> None:
    """Without `unscale_` the threshold is compared with numbers 65,536 times too large."""

    def scaled(
        model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int], right: bool
    ) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for _ in steps:
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(16, 6)).square().mean()).backward()
            if right:
                scaler.unscale_(optimizer)
            clip(model, 1e3)
            scaler.step(optimizer)
            scaler.update()

    assert set(findings(lambda m, o, s: scaled(m, o, s, False))) == {"still scaled"}
    assert findings(lambda m, o, s: scaled(m, o, s, True)) == {}


def test_value_clipping_that_turns_the_gradient_is_told() -> None:
    """With the cosine, which is that of the gradients themselves."""
    cosines: list[float] = []

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int]) -> None:
        for _ in steps:
            optimizer.zero_grad()
            backward(model)
            before = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            nn.utils.clip_grad_value_(model.parameters(), 1e-3)
            after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            cosines.append(float(torch.cosine_similarity(before, after, dim=0)))
            optimizer.step()

    found = findings(loop)
    assert set(found) == {"direction"}
    # The first call is what shows that values are clipped; the second is compared.
    first = sorted(cosines[1:6])[2]
    assert found["direction"].evidence["cosine"] == pytest.approx(first, rel=1e-4)
