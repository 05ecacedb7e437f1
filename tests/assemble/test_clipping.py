"""Each step's `Clip` against what torch and plain arithmetic say."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_ as imported_before_the_trace
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from gradtrace import Clip, Sampling, Trace, gradtrace


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def norm(model: nn.Module, order: float = 2.0) -> float:
    flat = torch.cat([g.double().flatten() for g in gradients(model)])
    return float(torch.linalg.vector_norm(flat, order))


def traced(
    clip: Callable[[nn.Module], Any],
    *,
    steps: int = 3,
    size: float = 1.0,
    first: int = 10,
    prepare: Callable[[nn.Module], None] = lambda model: None,
) -> tuple[Trace, list[tuple[float, float]]]:
    """A few steps with `clip` between backward and step; the true norms before and after."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    prepare(model)
    norms = []
    with gradtrace(model, directory=None, sampling=Sampling(first=first)) as trace:
        for _ in range(steps):
            optimizer.zero_grad()
            (model(torch.randn(6, 5)).square().mean() * size).backward()
            before = norm(model)
            clip(model)
            norms.append((before, norm(model)))
            optimizer.step()
    return trace, norms


def check(trace: Trace, norms: list[tuple[float, float]], kind: str, rel: float = 1e-5) -> Clip:
    for record, (before, after) in zip(trace.steps, norms, strict=True):
        clip = record.clip
        assert clip is not None
        assert clip.kind == kind
        assert clip.norm_before == pytest.approx(before, rel=rel)
        assert clip.norm_after == pytest.approx(after, rel=rel)
        assert clip.coefficient == pytest.approx(after / before, rel=rel)
        assert clip.clipped == (after < before * (1 - 1e-6))
        assert record.grad_norm == pytest.approx(before, rel=1e-5)
    last = trace.steps[-1].clip
    assert last is not None
    return last


@pytest.mark.parametrize("size", [0.01, 100.0])
@pytest.mark.parametrize(
    "clip",
    [
        lambda m: imported_before_the_trace(m.parameters(), 0.5),
        lambda m: nn.utils.clip_grad_norm_(list(m.parameters()), max_norm=0.5),
        lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.5, foreach=False),
        lambda m: torch.nn.utils.clip_grad.clip_grad_norm_(m.parameters(), 0.5, 2.0),
        lambda m: clip_grads_with_norm_(m.parameters(), 0.5, get_total_norm(gradients(m))),
    ],
    ids=["imported", "module", "foreach_off", "submodule", "two_calls"],
)
def test_norm_clipping_is_seen_however_it_is_called(
    clip: Callable[[nn.Module], Any], size: float
) -> None:
    """Before, after, coefficient and threshold of torch's norm clipping, under any import."""
    trace, norms = traced(clip, size=size)
    last = check(trace, norms, "norm")
    assert last.threshold == 0.5 and last.calls == 1


def test_other_norms_are_reported_in_their_own_order() -> None:
    """Clipping by the largest value as a norm reports that norm, and L2 stays `grad_norm`."""
    sizes = []

    def clip(model: nn.Module) -> None:
        sizes.append(norm(model, math.inf))
        nn.utils.clip_grad_norm_(model.parameters(), 0.001, norm_type=math.inf)

    trace, norms = traced(clip)
    for record, size, (before, _) in zip(trace.steps, sizes, norms, strict=True):
        assert record.clip is not None
        assert record.clip.norm_before == pytest.approx(size, rel=1e-5)
        assert record.grad_norm == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_value_clipping(size: float) -> None:
    """Value clipping reports the true L2 norms before and after, and whether it did anything."""
    trace, norms = traced(lambda m: clip_grad_value_(m.parameters(), 0.3), size=size)
    last = check(trace, norms, "value")
    assert last.threshold == 0.3


def test_a_generator_is_not_used_up_for_the_function() -> None:
    """A generator of parameters given to a clipping function is clipped as without a trace."""
    trace, norms = traced(lambda m: clip_grad_value_((p for p in m.parameters()), 1e-4), size=100.0)
    assert all(after < before / 10 for before, after in norms)
    assert trace.steps[0].clip is not None


def by_norm(model: nn.Module, limit: float = 0.05) -> None:
    factor = min(1.0, limit / (norm(model) + 1e-6))
    for gradient in gradients(model):
        gradient.mul_(factor)


def by_value(model: nn.Module) -> None:
    for gradient in gradients(model):
        gradient.clamp_(-0.01, 0.01)


def per_layer(model: nn.Module) -> None:
    for gradient in gradients(model):
        gradient.mul_(0.1 / float(gradient.norm()))


def test_home_made_norm_clipping_is_inferred() -> None:
    """Scaling all gradients by one factor is told as norm clipping, with numbers from before."""
    last = check(*traced(by_norm, size=10.0), "norm")
    assert last.threshold == pytest.approx(0.05, rel=1e-3)


def test_home_made_value_clipping_is_inferred() -> None:
    """Clamping values is told as value clipping, with its limit."""
    last = check(*traced(by_value, size=10.0), "value")
    assert last.threshold == pytest.approx(0.01)


def test_home_made_clipping_of_each_layer_is_inferred() -> None:
    """Each layer brought to the same norm is norm clipping."""
    last = check(*traced(per_layer, size=10.0), "norm")
    assert last.threshold == pytest.approx(0.1, rel=1e-3)


def test_home_made_clipping_that_replaces_gradients_is_inferred() -> None:
    """Reassigning `.grad` is seen like an in-place change."""

    def replace(model: nn.Module) -> None:
        total = norm(model)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad = parameter.grad * min(1.0, 0.05 / total)

    check(*traced(replace, size=10.0), "norm")


def divided(model: nn.Module) -> None:
    by = random.randint(2, 400)
    for gradient in gradients(model):
        gradient.div_(by)


def quartered(model: nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad = parameter.grad * 0.25


def embedded(model: nn.Module) -> None:
    gradients(model)[0].mul_(0.1)


def noisy(model: nn.Module) -> None:
    for gradient in gradients(model):
        gradient.mul_(0.5).add_(torch.randn_like(gradient) * 1e-3 * gradient.norm())


@pytest.mark.parametrize("first", [0, 10])
@pytest.mark.parametrize("change", [divided, quartered, embedded, noisy])
def test_rescaling_is_no_clipping(change: Callable[[nn.Module], None], first: int) -> None:
    """Norm and table are those of the gradients that were used, and a clip after it is its own."""
    random.seed(0)
    clipped: list[float] = []

    def rescale(model: nn.Module) -> None:
        change(model)
        if first:
            clipped.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)))

    trace, norms = traced(rescale, steps=12, size=10.0, first=first)
    for record, (_, after) in zip(trace.steps, norms, strict=True):
        assert record.gradients is not None and record.grad_norm is not None
        expected = clipped[record.step] if first else after
        assert record.grad_norm == pytest.approx(expected, rel=1e-5)
        rows = record.gradients.column("norm")
        assert math.sqrt(sum(rows**2)) == pytest.approx(expected, rel=1e-5)
        assert (record.clip is None) == (not first)
        if record.clip is not None:
            assert record.clip.calls == 1 and record.clip.threshold == 1e-3
            assert record.clip.norm_before == pytest.approx(expected, rel=1e-5)
    assert trace.notes == []


def test_clipping_to_nan_keeps_the_bad_layer() -> None:
    """Code that cleans gradients that were bad hides nothing: the record has them as they came."""

    def clean(model: nn.Module) -> None:
        for gradient in gradients(model):
            gradient.nan_to_num_(0.0, 0.0, 0.0)

    def bad(model: nn.Module) -> None:
        weight: Tensor = model[0].weight  # type: ignore[index]
        weight.register_hook(spoil)

    trace, _ = traced(clean, steps=2, prepare=bad)
    assert all(record.clip is None for record in trace.steps)
    assert [event.kind for event in trace.events if event.kind == "nonfinite"] == ["nonfinite"] * 2


@pytest.mark.parametrize("factor", [100.0, math.inf])
def test_a_change_that_enlarges_gradients_is_no_clipping(factor: float) -> None:
    """Noise, scaling or a fault put in after backward shows in the numbers, not as a clip."""

    def enlarge(model: nn.Module) -> None:
        for gradient in gradients(model):
            gradient.mul_(factor)

    trace, norms = traced(enlarge, steps=1)
    for record, (_, after) in zip(trace.steps, norms, strict=True):
        assert record.clip is None
        assert record.grad_norm == pytest.approx(after, nan_ok=True)
    assert bool([e for e in trace.events if e.kind == "nonfinite"]) == math.isinf(factor)


def test_home_made_clipping_that_starts_late_is_seen_at_once() -> None:
    """When gradients are first changed late in a run, that step's numbers are right already."""
    count = 0

    def clip(model: nn.Module) -> None:
        nonlocal count
        count += 1
        if count > 4:
            by_norm(model)

    trace, norms = traced(clip, steps=8, size=10.0, first=0)
    steps = trace.steps
    assert trace.notes == [] and [s.clip is not None for s in steps] == [False] * 4 + [True] * 4
    for record, (before, after) in zip(steps, norms, strict=True):
        assert record.grad_norm == pytest.approx(before, rel=1e-5)
        if record.clip is not None:
            assert record.clip.norm_before == pytest.approx(before, rel=1e-5)
            assert record.clip.norm_after == pytest.approx(after, rel=1e-5)


def test_gradients_that_were_changed_before_they_were_read_have_no_numbers() -> None:
    """A sum that is used earlier than the ones before: a note says so; later ones are right."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    norms = []
    with gradtrace(model, directory=None, sampling=Sampling(first=0)) as trace:
        for backwards in (3, 3, 3, 1, 3, 2, 4):
            for _ in range(backwards):
                model(torch.randn(6, 5)).square().mean().mul(10).backward()
            norms.append(norm(model))
            if backwards != 3 or len(norms) > 4:
                by_norm(model)
            optimizer.step()
            optimizer.zero_grad()
    steps = trace.steps
    assert [note.source for note in trace.notes] == ["clipping"]
    assert "no gradient norms" in trace.notes[0].message
    assert steps[3].grad_norm is None and steps[3].clip is None and steps[3].gradients is None
    rest, truth = steps[:3] + steps[4:], norms[:3] + norms[4:]
    assert [s.grad_norm for s in rest] == pytest.approx(truth, rel=1e-5)
    assert [s.clip is not None for s in rest] == [False] * 3 + [True] * 3


def test_two_calls_on_parts_of_the_model_are_one_clip() -> None:
    """Calls on different parameters are joined as parts of one vector."""

    def clip(model: nn.Module) -> None:
        assert isinstance(model, nn.Sequential)
        nn.utils.clip_grad_norm_(model[0].parameters(), 0.05)
        nn.utils.clip_grad_norm_(model[2].parameters(), 0.05)

    trace, norms = traced(clip, size=10.0)
    last = check(trace, norms, "norm")
    assert last.calls == 2


def test_two_calls_on_the_same_parameters_follow_each_other() -> None:
    """Clipping twice goes from the first call's norm to the last one's."""

    def clip(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)

    last = check(*traced(clip, size=10.0), "norm")
    assert last.calls == 2


def test_clipping_another_model_is_not_ours() -> None:
    """A clip of parameters the trace does not watch leaves no mark."""
    other = nn.Linear(3, 3)
    other(torch.randn(2, 3)).sum().backward()
    trace, _ = traced(lambda m: nn.utils.clip_grad_norm_(other.parameters(), 0.1))
    assert all(record.clip is None for record in trace.steps)


def test_a_clip_that_raises_is_the_users_error_alone() -> None:
    """`error_if_nonfinite` raises as ever, and the next step is recorded as ever."""
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        for k in range(3):
            optimizer.zero_grad()
            (model(torch.randn(2, 3)).sum() * (math.inf if k == 1 else 1.0)).backward()
            if k == 1:
                with pytest.raises(RuntimeError, match="non-finite"):
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
                continue
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert [s.clip is not None and s.clip.calls for s in trace.steps] == [1, 1]
    assert all(s.grad_norm is not None and math.isfinite(s.grad_norm) for s in trace.steps)


def spoil(gradient: Tensor) -> Tensor:
    spoiled = gradient.clone()
    spoiled[0, 0] = math.nan
    return spoiled


def test_statistics_come_from_before_clipping_spreads_nan() -> None:
    """With one bad layer, torch's clip makes all gradients NaN; the table names the bad one."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None) as trace:
        weight: Tensor = model[1].weight  # type: ignore[assignment]
        weight.register_hook(spoil)
        model(torch.randn(3, 4)).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert all(bool(g.isnan().all()) for g in gradients(model))
        optimizer.step()
    [event] = [e for e in trace.events if e.kind == "nonfinite"]
    assert getattr(event, "layers", None) == {"1.weight": 1}


def test_fsdp_clipping_is_seen() -> None:
    """FSDP1's own clipping method reports the norm it worked with."""
    dist: Any = torch.distributed
    if not dist.is_available():
        pytest.skip("this torch is built without torch.distributed")
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = FullyShardedDataParallel(
            nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 2)), device_id=torch.device("cpu")
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradtrace(model, directory=None) as trace:
            for _ in range(2):
                optimizer.zero_grad()
                (model(torch.randn(3, 5)).square().sum() * 10).backward()
                before = norm(model)
                total = model.clip_grad_norm_(0.5)
                optimizer.step()
        clip = trace.steps[-1].clip
        assert [note.source for note in trace.notes] == ["parameters"]
        assert clip is not None and clip.clipped and clip.threshold == 0.5
        assert clip.norm_before == pytest.approx(float(total))
        assert clip.norm_before == pytest.approx(before, rel=1e-5)
    finally:
        dist.destroy_process_group()
