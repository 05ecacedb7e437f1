"""What a GradScaler does around losses and steps, as far as a trace has to remember it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradtrace.measure.flat import whole
from gradtrace.taps import backward, scaler

REMEMBERED = 64
"""Scaled losses whose raw ones are known: more than any loop has under way."""


_Scaled = tuple[weakref.ref[Tensor], Tensor, weakref.ref[Any]]
"""The scaled loss, a copy of the raw one, and the scaler."""


class LossScales:
    """Which raw loss a scaled one came from. Training thread."""

    def __init__(self) -> None:
        self._scaled: deque[_Scaled] = deque(maxlen=REMEMBERED)
        self._unclaimed: weakref.ref[Any] | None = None

    def scaled(self, raw: Any, scaled: Any, by: Any) -> None:
        """`by.scale(raw)` returned `scaled`."""
        self._unclaimed = weakref.ref(by)
        if isinstance(raw, Tensor) and isinstance(scaled, Tensor) and raw.numel() == 1:
            loss = whole(raw.detach())
            if loss is not None:
                kept = loss.clone().reshape(())
                self._scaled.append((weakref.ref(scaled), kept, self._unclaimed))

    def loss(
        self, outputs: Sequence[Any], weights: Sequence[Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The unscaled loss of a backward from `outputs`, and the scale that multiplied it."""
        used, self._unclaimed = self._unclaimed, None
        loss = None
        if len(outputs) == 1:
            for ref, raw, scaled_by in self._scaled:
                if ref() is outputs[0]:
                    loss, used = backward.loss_of((raw,), weights), scaled_by
        by = None if used is None else used()
        scale = None if by is None else scaler.loss_scale(by)
        if loss is None:
            loss = backward.loss_of(outputs, weights)
            if loss is not None and scale is not None:
                loss = loss / scale  # a scaled loss that was changed further
        return loss, scale
