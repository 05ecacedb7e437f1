"""A run's loss and gradient norm in one figure, kept while the run goes on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from gradtrace.plots.curves import Curve, curves_figure
from gradtrace.records import Record, Spike, StepRecord


class Curves:
    """Loss and gradient norm of a run in bounded memory, and where they spiked."""

    def __init__(self, most: int = 8192) -> None:
        self._most = most
        self._stride = 1
        self._points: list[tuple[int, float, float]] = []
        self._spikes: dict[str, list[tuple[int, float]]] = {"loss": [], "grad_norm": []}

    def update(self, record: Record) -> None:
        """Takes one more record; of a long run every second step is forgotten, again and again."""
        if isinstance(record, Spike):
            spikes = self._spikes.get(record.signal, [])
            if record.duration == 1 and len(spikes) < 1000:
                spikes.append((record.step, record.value))
        if not isinstance(record, StepRecord) or record.step % self._stride:
            return
        loss, norm = (math.nan if v is None else v for v in (record.loss, record.grad_norm))
        self._points.append((record.step, loss, norm))
        if len(self._points) > self._most:
            self._stride *= 2
            self._points = [point for point in self._points if point[0] % self._stride == 0]

    def draw(self, path: Path) -> bool:
        """Writes a figure; False where matplotlib is missing or there is nothing to see."""
        points = np.asarray(self._points, dtype=np.float64).reshape(-1, 3)
        series = (("loss", "loss"), ("grad_norm", "gradient norm"))
        try:
            figure = curves_figure(
                [
                    Curve(label, points[:, 0], points[:, column], self._spikes[signal])
                    for column, (signal, label) in enumerate(series, 1)
                ]
            )
        except (ImportError, ValueError):
            return False
        figure.savefig(path, dpi=110)
        return True
