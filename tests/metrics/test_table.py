"""The metrics' names."""

from __future__ import annotations

from build import clip, step

from gradtrace.metrics.table import METRICS
from gradtrace.metrics.totals import Totals

PAIRS = """
loss gradtrace_loss
grad_norm gradtrace_grad_norm
grad_norm_clipped gradtrace_grad_norm_clipped
clip/coefficient gradtrace_clip_coefficient
clip/fraction gradtrace_clip_fraction
lr gradtrace_learning_rate group
spike_score gradtrace_spike_score signal
spikes gradtrace_spikes_total signal
nonfinite_steps gradtrace_nonfinite_steps_total
skipped_steps gradtrace_skipped_steps_total
clipped_steps gradtrace_clipped_steps_total
step gradtrace_steps_total
- gradtrace_last_step_timestamp_seconds
- gradtrace_last_step_batch_index
- gradtrace_run_active
- gradtrace_last_spike_step
- gradtrace_last_spike_batch_index
- gradtrace_last_nonfinite_step
- gradtrace_last_nonfinite_batch_index
layers/<name>/grad_norm gradtrace_layer_grad_norm layer
layers/<name>/update_ratio gradtrace_layer_update_ratio layer
layers/<name>/zero_fraction gradtrace_layer_zero_fraction layer
layers/<name>/activation_max_abs gradtrace_layer_activation_max_abs layer
layers/<name>/activation_zero_fraction gradtrace_layer_activation_zero_fraction layer
overhead_seconds gradtrace_overhead_seconds_total
dropped_records gradtrace_dropped_records_total exporter
"""


def test_the_names_are_the_published_ones() -> None:
    """Dashboards rely on exactly these names and labels, in no other spelling."""
    found = [" ".join((m.key or "-", m.prometheus, *m.labels)) for m in METRICS]
    assert found == PAIRS.split("\n")[1:-1]


def test_every_metric_explains_itself() -> None:
    """Each metric has a meaning, and the counters are those that Prometheus calls totals."""
    assert all(metric.meaning for metric in METRICS)
    assert {m.key for m in METRICS if m.counter} == {
        "spikes",
        "nonfinite_steps",
        "skipped_steps",
        "clipped_steps",
        "step",
        "overhead_seconds",
        "dropped_records",
    }


def test_every_value_is_a_published_metric() -> None:
    """A full record gives values under keys of the table only."""
    totals = Totals()
    totals.update(step(3, loss=1.0, lr=(0.1,), grad_norm=2.0, clip=clip(1.0, 2.0)))
    assert totals.values().keys() <= {metric.key for metric in METRICS}
