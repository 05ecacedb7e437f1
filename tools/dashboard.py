"""Writes the Grafana dashboard's JSON anew, with Grafana's own SDK: `python tools/dashboard.py`.

Users get the JSON, which stands in the templates of gradtrace.monitoring; nothing in gradtrace
needs `grafana-foundation-sdk`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

from gradtrace.thresholds import CLIPPED_OFTEN

TARGET = Path(__file__).parents[1] / "gradtrace/monitoring/templates/dashboard.json"

DATASOURCE = "gradtrace-prometheus"
OF = '{run=~"$run", rank=~"$rank"}'
WIDTH = 24
HEIGHT = 8


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the name of its series."""

    expr: str
    legend: str = "{{run}} rank {{rank}}"


@dataclass(frozen=True)
class Panel:
    """One panel. `kind` is "lines" or "number"; `log` makes the axis logarithmic."""

    title: str
    queries: tuple[Query, ...]
    description: str
    unit: str = "short"
    kind: str = "lines"
    log: bool = False
    alarm: float | None = None
    columns: int = 2


def _one(expr: str, legend: str = "{{run}} rank {{rank}}") -> tuple[Query, ...]:
    return (Query(expr, legend),)


RATE = "[$__rate_interval]"

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Overview",
        (
            Panel(
                "Steps",
                _one(f"gradtrace_steps_total{OF}"),
                "Optimizer steps so far.",
                kind="number",
                columns=4,
            ),
            Panel(
                "Since the last step",
                _one(f"time() - gradtrace_last_step_timestamp_seconds{OF}"),
                "Grows while the loop stands still.",
                "s",
                kind="number",
                columns=4,
            ),
            Panel(
                "Spikes",
                _one(f"sum by (run, rank) (gradtrace_spikes_total{OF})"),
                "Spikes of loss and gradient norm so far.",
                kind="number",
                columns=4,
            ),
            Panel(
                "Steps with NaN or Inf",
                _one(f"gradtrace_nonfinite_steps_total{OF}"),
                "In the loss or in the gradients.",
                kind="number",
                columns=4,
            ),
            Panel(
                "Loss", _one(f"gradtrace_loss{OF}"), "Mean of the step's micro-batches.", log=True
            ),
            Panel(
                "Steps a second",
                _one(f"rate(gradtrace_steps_total{OF}{RATE})"),
                "Optimizer steps a second.",
                "ops",
            ),
        ),
    ),
    (
        "Gradients",
        (
            Panel(
                "Gradient norm",
                (
                    Query(f"gradtrace_grad_norm{OF}", "{{run}} rank {{rank}}, before clipping"),
                    Query(f"gradtrace_grad_norm_clipped{OF}", "{{run}} rank {{rank}}, after"),
                ),
                "Global L2 norm, unscaled.",
                log=True,
            ),
            Panel(
                "Learning rate",
                _one(f"gradtrace_learning_rate{OF}", "{{run}} rank {{rank}}, group {{group}}"),
                "Of each param group.",
            ),
        ),
    ),
    (
        "Clipping",
        (
            Panel(
                "Clipped share",
                _one(f"gradtrace_clip_fraction{OF}"),
                "Share of the last 100 steps that clipping changed. Near 1 it sets the learning "
                "rate instead of catching outliers.",
                "percentunit",
                alarm=CLIPPED_OFTEN,
            ),
            Panel(
                "Clip coefficient",
                _one(f"gradtrace_clip_coefficient{OF}"),
                "The factor gradients were multiplied with; 1 is untouched.",
                log=True,
            ),
            Panel(
                "Clipped steps a second",
                _one(f"rate(gradtrace_clipped_steps_total{OF}{RATE})"),
                "Steps that clipping changed.",
                "ops",
            ),
        ),
    ),
    (
        "Spikes",
        (
            Panel(
                "Distance from the baseline",
                _one(f"gradtrace_spike_score{OF}", "{{run}} rank {{rank}}, {{signal}}"),
                "In units of the alarm distance: at 1 it is a spike.",
                alarm=1.0,
            ),
            Panel(
                "New spikes",
                _one(
                    f"increase(gradtrace_spikes_total{OF}{RATE})",
                    "{{run}} rank {{rank}}, {{signal}}",
                ),
                "Spikes in each interval.",
            ),
            Panel(
                "Last spike: step",
                _one(f"gradtrace_last_spike_step{OF}"),
                "`gradtrace spikes RUN --step N` tells what is behind it.",
                kind="number",
            ),
            Panel(
                "Last spike: batch index",
                _one(f"gradtrace_last_spike_batch_index{OF}"),
                "The first that is blamed, within its epoch; -1 where no batch is to blame.",
                kind="number",
            ),
        ),
    ),
    (
        "Layers",
        (
            Panel(
                "Gradient norm of layers",
                _one(f"gradtrace_layer_grad_norm{OF}", "{{layer}}"),
                "Groups of layers, and the layers with the largest norms.",
                log=True,
            ),
            Panel(
                "Update relative to the weight",
                _one(f"gradtrace_layer_update_ratio{OF}", "{{layer}}"),
                "|update| / |weight|; about 1e-3 is common.",
                log=True,
            ),
        ),
    ),
    (
        "Activations",
        (
            Panel(
                "Largest magnitude of outputs",
                _one(f"gradtrace_layer_activation_max_abs{OF}", "{{layer}}"),
                "Half precision ends at 65,504.",
                log=True,
            ),
            Panel(
                "Zeros among outputs",
                _one(f"gradtrace_layer_activation_zero_fraction{OF}", "{{layer}}"),
                "Half is usual after ReLU; units that are zero on every sample have died.",
                "percentunit",
            ),
            Panel(
                "Zeros among gradients",
                _one(f"gradtrace_layer_zero_fraction{OF}", "{{layer}}"),
                "Units that are never active send back gradients of exactly zero.",
                "percentunit",
            ),
            Panel(
                "Layers with mostly zeros",
                _one(
                    f"sum by (run, rank) (gradtrace_layer_zero_fraction{OF} > bool 0.5)",
                ),
                "Groups and layers of which more than half the gradients are exactly zero.",
                kind="number",
            ),
        ),
    ),
    (
        "Pipeline health",
        (
            Panel(
                "Overhead",
                _one(f"rate(gradtrace_overhead_seconds_total{OF}{RATE})"),
                "Share of the training thread's time spent on measuring.",
                "percentunit",
            ),
            Panel(
                "Records lost",
                _one(f"gradtrace_dropped_records_total{OF}", "{{run}} rank {{rank}}, {{exporter}}"),
                "By exporters that could not keep up and had no run log to catch up from.",
            ),
            Panel(
                "Steps skipped by the loss scaler",
                _one(f"increase(gradtrace_skipped_steps_total{OF}{RATE})"),
                "Overflows in half precision.",
            ),
            Panel(
                "Runs going on",
                _one(f"sum(gradtrace_run_active{OF})", "runs"),
                "Processes that are training.",
                kind="number",
            ),
        ),
    ),
)

VARIABLES = (
    ("run", "label_values(gradtrace_steps_total, run)"),
    ("rank", 'label_values(gradtrace_steps_total{run=~"$run"}, rank)'),
)


def dashboard_json() -> str:
    """The dashboard as Grafana imports it."""
    made = builders.Dashboard("gradtrace").uid("gradtrace").tags(["gradtrace"]).refresh("10s")
    made = made.time("now-3h", "now").tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    for name, query in VARIABLES:
        made = made.with_variable(_variable(name, query))
    number = y = 0
    for title, panels in ROWS:
        row = builders.Row(title).grid_pos(dashboard.GridPos(h=1, w=WIDTH, x=0, y=y))
        made = made.with_row(row)
        x, y = 0, y + 1
        for panel in panels:
            width = WIDTH // panel.columns
            if x + width > WIDTH:
                x, y = 0, y + HEIGHT
            number += 1
            place = dashboard.GridPos(h=HEIGHT, w=width, x=x, y=y)
            made = made.with_panel(_panel(panel, number, place))
            x += width
        y += HEIGHT
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _variable(name: str, query: str) -> Any:
    return (
        builders.QueryVariable(name)
        .query(query)
        .datasource(_datasource())
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel, number: int, place: Any) -> Any:
    made: Any = stat.Panel() if panel.kind == "number" else timeseries.Panel()
    made = made.title(panel.title).description(panel.description).unit(panel.unit)
    made = made.id(number).datasource(_datasource()).grid_pos(place)
    for at, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
        made = made.with_target(target.ref_id("ABCDEF"[at]).datasource(_datasource()))
    if panel.kind == "number":
        return made
    if panel.log:
        scale = common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG)
        made = made.scale_distribution(scale.log(10))
    if panel.alarm is not None:
        steps = [
            dashboard.Threshold(value=None, color="green"),
            dashboard.Threshold(value=panel.alarm, color="red"),
        ]
        made = made.thresholds(
            builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)
        )
        style = common_builders.GraphThresholdsStyleConfig()
        made = made.thresholds_style(style.mode(common.GraphThresholdsStyleMode.LINE))
    return made


def _datasource() -> Any:
    return dashboard.DataSourceRef(type_val="prometheus", uid=DATASOURCE)


if __name__ == "__main__":
    TARGET.write_text(dashboard_json(), encoding="utf-8")
