"""The metrics' names, units and present values. The names are API: dashboards rely on them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from gradtrace.records import Event, Record, StepRecord

CLIP_WINDOW = 100


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its key for MLflow, W&B and TensorBoard, its Prometheus name, unit, meaning."""

    key: str
    prometheus: str
    unit: str
    meaning: str


METRICS: tuple[Metric, ...] = (
    Metric("loss", "gradtrace_loss", "", "mean loss of the step's micro-batches"),
    Metric("grad_norm", "gradtrace_grad_norm", "L2", "global gradient norm before clipping"),
    Metric("grad_norm_clipped", "gradtrace_grad_norm_clipped", "L2", "the same after clipping"),
    Metric("clip/coefficient", "gradtrace_clip_coefficient", "ratio", "factor that clipping left"),
    Metric("clip/fraction", "gradtrace_clip_fraction", "ratio", "clipped among the last 100 steps"),
    Metric("lr", "gradtrace_learning_rate", "", "learning rate of each parameter group"),
    Metric("spike_score", "gradtrace_spike_score", "ratio", "distance from the baseline; 1 alarms"),
    Metric("spikes", "gradtrace_spikes_total", "count", "spikes so far"),
    Metric("nonfinite_steps", "gradtrace_nonfinite_steps_total", "count", "steps with NaN or Inf"),
    Metric("skipped_steps", "gradtrace_skipped_steps_total", "count", "steps AMP skipped"),
    Metric("clipped_steps", "gradtrace_clipped_steps_total", "count", "steps clipping changed"),
    Metric("step", "gradtrace_steps_total", "count", "optimizer steps"),
    Metric("overhead_seconds", "gradtrace_overhead_seconds_total", "s", "training time spent by us"),
    Metric("dropped_records", "gradtrace_dropped_records_total", "count", "records lost"),
)


class Totals:
    """Present values of the metrics, from records fed in order. Bounded memory, few us a record."""

    def __init__(self) -> None:
        self._last: StepRecord | None = None
        self._window: deque[bool] = deque(maxlen=CLIP_WINDOW)
        self._window_sum = 0
        self._counts = dict.fromkeys(
            ("spikes", "nonfinite_steps", "skipped_steps", "clipped_steps"), 0
        )
        self._overhead = 0.0

    def update(self, record: Record) -> None:
        """Takes one more record."""
        if isinstance(record, Event):
            self._counts["spikes"] += record.kind == "spike"
            return
        clipped = record.clip is not None and record.clip.clipped
        if len(self._window) == CLIP_WINDOW:
            self._window_sum -= self._window[0]
        self._window.append(clipped)
        self._window_sum += clipped
        self._counts["clipped_steps"] += clipped
        self._counts["skipped_steps"] += record.skipped
        self._counts["nonfinite_steps"] += is_nonfinite(record)
        self._overhead += record.overhead
        self._last = record

    def values(self) -> dict[str, float]:
        """Values by key; what the last step did not have is left out. `lr/0`, ... for groups."""
        last = self._last
        values: dict[str, float] = {}
        if last is None:
            return values
        values["step"] = last.step
        if last.loss is not None:
            values["loss"] = last.loss
        if last.grad_norm is not None:
            values["grad_norm"] = last.grad_norm
        if last.clip is not None:
            values["grad_norm_clipped"] = last.clip.norm_after
            values["clip/coefficient"] = last.clip.coefficient
        values["clip/fraction"] = self._window_sum / len(self._window)
        if len(last.lr) == 1:
            values["lr"] = last.lr[0]
        else:
            values |= {f"lr/{group}": lr for group, lr in enumerate(last.lr)}
        return values | self._counts | {"overhead_seconds": self._overhead}


def is_nonfinite(record: StepRecord) -> bool:
    """Whether NaN or Inf reached the step's loss or gradients."""
    for value in (record.loss, record.grad_norm):
        if value is not None and not math.isfinite(value):
            return True
    table = record.gradients
    return table is not None and bool(np.any(table.column("nonfinite") > 0))
