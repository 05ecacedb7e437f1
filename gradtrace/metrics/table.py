"""The metrics' names, units and meanings. The names are API: dashboards rely on them."""

from __future__ import annotations

from dataclasses import dataclass


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
    Metric(
        "",
        "gradtrace_last_spike_batch_index",
        "",
        "Index of the first batch blamed for the last spike, -1 where none is",
    ),
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
