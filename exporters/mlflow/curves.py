"""A run's loss and gradient norm in one figure, kept while the run goes on."""

from __future__ import annotations

import math
from pathlib import Path

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
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        steps = [step for step, _, _ in self._points]
        series = (("loss", 1, "loss"), ("grad_norm", 2, "gradient norm"))
        shown = {
            signal: (label, [p[at] if math.isfinite(p[at]) else math.nan for p in self._points])
            for signal, at, label in series
            if any(math.isfinite(p[at]) for p in self._points)
        }
        if not shown:
            return False
        figure = Figure(figsize=(9, 3 * len(shown)), layout="constrained")
        rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (signal, (label, values)) in zip(rows, shown.items(), strict=True):
            axis.plot(steps, values, color="#30507a", lw=1.2)
            spikes = [point for point in self._spikes[signal] if math.isfinite(point[1])]
            if spikes:
                axis.plot(*zip(*spikes, strict=True), "o", color="#c0392b", label="spike")
                axis.legend(loc="upper left", fontsize=8, frameon=False)
            if all(math.isnan(value) or value > 0 for value in values):
                axis.set_yscale("log")
            axis.set_ylabel(label)
            axis.grid(alpha=0.25)
        rows[-1].set_xlabel("step")
        figure.savefig(path, dpi=110)
        return True
