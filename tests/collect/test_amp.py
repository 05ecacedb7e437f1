"""Which loss a scaled one came from, and what multiplied it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from ranks import alone
from torch import Tensor

from gradtrace.collect import amp
from gradtrace.collect.amp import LossScales


def scaler(scale: float = 8.0, *, enabled: bool = True) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, enabled=enabled)


def scaled(losses: LossScales, raw: Tensor, by: torch.amp.GradScaler) -> Tensor:
    result: Tensor = by.scale(raw)
    losses.scaled(raw, result, by)
    return result


def told(pair: tuple[Tensor | None, Tensor | None]) -> tuple[float | None, float | None]:
    loss, scale = pair
    return (None if loss is None else float(loss)), (None if scale is None else float(scale))


def test_a_scaled_loss_is_known_by_what_it_was() -> None:
    """The raw loss is told as it was when it was scaled, also in another order than scaled."""
    losses, by = LossScales(), scaler()
    raws = [torch.tensor(float(k)) for k in range(3)]
    results = [scaled(losses, raw, by) for raw in raws]
    for raw in raws:
        raw.fill_(-1.0)
    for k in (2, 0, 1):
        assert told(losses.loss((results[k],), ())) == (float(k), 8.0)


def test_each_scaler_has_its_own_scale() -> None:
    """Of two scalers the one that scaled this loss counts, not the one that scaled last."""
    losses, first, second = LossScales(), scaler(8.0), scaler(32.0)
    one = scaled(losses, torch.tensor(1.0), first)
    scaled(losses, torch.tensor(2.0), second)
    assert told(losses.loss((one,), ())) == (1.0, 8.0)


def test_a_scaled_loss_that_was_changed_is_divided() -> None:
    """Where it was changed after scaling, the scaler used last gives the scale."""
    losses, by = LossScales(), scaler()
    result = scaled(losses, torch.tensor(4.0), by)
    assert told(losses.loss((result / 2,), ())) == (2.0, 8.0)


def test_a_loss_without_a_scaler_is_itself() -> None:
    """Also after a scaler's loss has been claimed, and while a scaler is switched off."""
    losses, by = LossScales(), scaler()
    losses.loss((scaled(losses, torch.tensor(1.0), by),), ())
    assert told(losses.loss((torch.tensor(3.0),), ())) == (3.0, None)
    off = scaler(enabled=False)
    assert told(losses.loss((scaled(losses, torch.tensor(5.0), off),), ())) == (5.0, None)


def test_what_is_no_scalar_has_a_scale_and_no_loss() -> None:
    """A backward from several values has no loss to tell; how they were multiplied is known."""
    losses, by = LossScales(), scaler()
    result = scaled(losses, torch.ones(3), by)
    assert told(losses.loss((result,), ())) == (None, 8.0)


def test_the_weight_of_a_loss_counts() -> None:
    """`scaled.backward(weight)` minimises the weighted loss, also where the raw one is known."""
    losses, by = LossScales(), scaler()
    result = scaled(losses, torch.tensor(4.0), by)
    assert told(losses.loss((result,), (torch.tensor(0.25),))) == (1.0, 8.0)
    result = scaled(losses, torch.tensor(4.0), by)
    assert told(losses.loss((result * 2,), (torch.tensor(0.25),))) == (2.0, 8.0)


def test_no_loss_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled losses are held weakly, and only the newest are remembered at all."""
    monkeypatch.setattr(amp, "REMEMBERED", 4)
    losses, by = LossScales(), scaler()
    result = scaled(losses, torch.tensor(1.0, requires_grad=True), by)
    gone = weakref.ref(result)
    del result
    gc.collect()
    assert gone() is None
    results = [scaled(losses, torch.tensor(float(k)), by) for k in range(9)]
    assert len(losses._scaled) == 4
    assert told(losses.loss((results[-1],), ())) == (8.0, 8.0)


@pytest.mark.parametrize("placement", ["replicate", "partial"])
def test_a_distributed_loss_is_known_where_it_lies(placement: str) -> None:
    """A summand of it is no loss, and is not copied, which would sum it up over the ranks."""
    losses, by = LossScales(), scaler()
    with alone() as make:
        raw = make(torch.tensor(3.0), placement)
        result = make(torch.tensor(24.0), placement)
        losses.scaled(raw, result, by)
        by.scale(torch.ones(()))
        expected = 3.0 if placement == "replicate" else None
        assert told(losses.loss((result,), ())) == (expected, 8.0)
