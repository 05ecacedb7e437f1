"""The metrics' names, units and present values. The names are API: dashboards rely on them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from gradtrace.records import Event, Record, Spike, StepRecord

CLIP_WINDOW = 100


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    `key` names it for MLflow, W&B and TensorBoard, below `gradtrace/`; "" where only Prometheus
    has it. `labels` are those of Prometheus beside `run` and `rank`, which every series carries.
    """

    key: str
    prometheus: str
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def counter(self) -> bool:
        """Whether it only ever grows."""
        return self.prometheus.endswith("_total")


METRICS: tuple[Metric, ...] = (
    Metric("loss", "gradtrace_loss", "", "Mean loss of the step's micro-batches"),
    Metric("grad_norm", "gradtrace_grad_norm", "L2", "Global gradient norm before clipping"),
    Metric("grad_norm_clipped", "gradtrace_grad_norm_clipped", "L2", "The norm after clipping"),
    Metric("clip/coefficient", "gradtrace_clip_coefficient", "ratio", "Factor clipping applied"),
    Metric(
        "clip/fraction", "gradtrace_clip_fraction", "ratio", "Share clipped of the last 100 steps"
    ),
    Metric("lr", "gradtrace_learning_rate", "", "Learning rate of a param group", ("group",)),
    Metric(
        "spike_score",
        "gradtrace_spike_score",
        "ratio",
        "Distance from the baseline in units of the alarm distance",
        ("signal",),
    ),
    Metric("spikes", "gradtrace_spikes_total", "count", "Spikes so far", ("signal",)),
    Metric("nonfinite_steps", "gradtrace_nonfinite_steps_total", "count", "Steps with NaN or Inf"),
    Metric("skipped_steps", "gradtrace_skipped_steps_total", "count", "Steps the scaler skipped"),
    Metric("clipped_steps", "gradtrace_clipped_steps_total", "count", "Steps clipping changed"),
    Metric("step", "gradtrace_steps_total", "count", "Optimizer steps"),
    Metric("", "gradtrace_last_step_timestamp_seconds", "s", "Unix time of the last step"),
    Metric("", "gradtrace_last_step_batch_index", "", "Batch index of the last step"),
    Metric("", "gradtrace_run_active", "", "1 while the run goes on"),
    Metric("", "gradtrace_last_spike_step", "", "Step of the last spike"),
    Metric("", "gradtrace_last_spike_batch_index", "", "Batch index of the last spike"),
    Metric("", "gradtrace_last_nonfinite_step", "", "Last step with NaN or Inf"),
    Metric("", "gradtrace_last_nonfinite_batch_index", "", "Batch index of that step"),
    Metric(
        "layers/<name>/grad_norm", "gradtrace_layer_grad_norm", "L2", "Layer's norm", ("layer",)
    ),
    Metric(
        "layers/<name>/update_ratio",
        "gradtrace_layer_update_ratio",
        "ratio",
        "Norm of the layer's update relative to that of its weight",
        ("layer",),
    ),
    Metric(
        "layers/<name>/zero_fraction",
        "gradtrace_layer_zero_fraction",
        "ratio",
        "Share of zeros among the layer's gradients",
        ("layer",),
    ),
    Metric(
        "layers/<name>/activation_max_abs",
        "gradtrace_layer_activation_max_abs",
        "",
        "Largest magnitude of the module's output",
        ("layer",),
    ),
    Metric(
        "layers/<name>/activation_zero_fraction",
        "gradtrace_layer_activation_zero_fraction",
        "ratio",
        "Share of zeros in the module's output",
        ("layer",),
    ),
    Metric(
        "overhead_seconds",
        "gradtrace_overhead_seconds_total",
        "s",
        "Training time gradtrace spent",
    ),
    Metric(
        "dropped_records",
        "gradtrace_dropped_records_total",
        "count",
        "Records lost",
        ("exporter",),
    ),
)


class Totals:
    """Present values of the metrics, from records fed in order.

    For one thread. Bounded memory; a few us a step, most of it for `is_nonfinite`.
    """

    def __init__(self) -> None:
        self._last: StepRecord | None = None
        self._window: deque[bool] = deque(maxlen=CLIP_WINDOW)
        self._window_sum = 0
        self._spikes = 0
        self._nonfinite = 0
        self._skipped = 0
        self._clipped = 0
        self._overhead = 0.0

    def update(self, record: Record) -> None:
        """Takes one more record."""
        if isinstance(record, Event):
            self._spikes += isinstance(record, Spike) and record.duration == 1
            return
        clipped = record.clip is not None and record.clip.clipped
        if len(self._window) == CLIP_WINDOW:
            self._window_sum -= self._window[0]
        self._window.append(clipped)
        self._window_sum += clipped
        self._clipped += clipped
        self._skipped += record.skipped
        self._nonfinite += is_nonfinite(record)
        self._overhead += record.overhead
        self._last = record

    def values(self) -> dict[str, float]:
        """Values by key, counts always, the rest as the last step had it.

        `lr` for one param group, `lr/0`, `lr/1`, ... for several. Values may be NaN or Inf.
        """
        values: dict[str, float] = {
            "spikes": self._spikes,
            "nonfinite_steps": self._nonfinite,
            "skipped_steps": self._skipped,
            "clipped_steps": self._clipped,
            "overhead_seconds": self._overhead,
        }
        last = self._last
        if last is None:
            return values
        values["step"] = last.step
        values["clip/fraction"] = self._window_sum / len(self._window)
        if last.loss is not None:
            values["loss"] = last.loss
        if last.grad_norm is not None:
            values["grad_norm"] = last.grad_norm
        if last.scores:
            values["spike_score"] = max(last.scores.values())
        if last.clip is not None:
            values["grad_norm_clipped"] = last.clip.norm_after
            values["clip/coefficient"] = last.clip.coefficient
        if len(last.lr) == 1:
            values["lr"] = last.lr[0]
        else:
            for group, lr in enumerate(last.lr):
                values[f"lr/{group}"] = lr
        return values


def is_nonfinite(record: StepRecord) -> bool:
    """Whether NaN or Inf reached the step's loss or gradients."""
    for value in (record.loss, record.grad_norm):
        if value is not None and not math.isfinite(value):
            return True
    table = record.gradients
    return table is not None and bool((table.column("nonfinite") > 0).any())
