"""The alerts, said once: Prometheus' rule file and Grafana's rules are both made of this list.

A counter is watched, not a gauge, for whatever happens once: a gauge misses a spike of one step
between two scrapes. `increase` sees nothing of a series whose first sample is not 0, so what was
not there a window ago counts as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gradtrace.thresholds import CLIPPED_OFTEN, EXPLODING_RATIO, SKIPPED_OFTEN, VANISHING_SHARE

ACTIVE = "on (run, rank) (gradtrace_run_active == 1)"


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert. `hold` is how many seconds the expression must have held.

    `about` is whose step and batch it names: those of the last "spike" or "nonfinite" step, or of
    the last "step" seen.
    """

    name: str
    expr: str
    hold: float
    severity: str
    summary: str
    advice: str
    about: Literal["spike", "nonfinite", "step"] = "step"


def rules(*, scale: float = 1.0) -> tuple[Rule, ...]:
    """All alerts. `scale` shortens every window and every wait, for tests and for short runs.

    A rule waits for `hold` where one odd scrape shall not alarm.

    Raises ValueError for a scale that is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale is {scale}; expected a factor above 0, 1 for the windows as meant")

    def span(seconds: float) -> str:
        return f"{max(1, round(seconds * scale))}s"

    def happened(counter: str) -> str:
        # One that was there before a scrape that failed is no new one.
        return (
            f"increase({counter}[{span(120)}]) > 0 or "
            f"({counter} > 0 unless last_over_time({counter}[{span(3600)}] offset {span(120)}))"
        )

    spikes = "sum by (run, rank) (increase(gradtrace_spikes_total[{}]{}))"
    hour = spikes.format(span(3600), "")
    hour_before = spikes.format(span(3600), f" offset {span(3600)}")
    ten_minutes = spikes.format(span(600), "")
    idle = "time() - gradtrace_last_step_timestamp_seconds"
    return (
        Rule(
            "GradtraceSpike",
            happened("gradtrace_spikes_total"),
            10 * scale,
            "warning",
            "{{ $labels.signal }} spiked",
            "`gradtrace spikes RUN` names the samples, the layers that rose and the likely cause; "
            "`trace.suspects` measures the samples.",
            "spike",
        ),
        Rule(
            "GradtraceSpikeRateRising",
            # Not before there is an hour to compare with.
            f"{hour} > 2 * {hour_before} and {hour} >= 4 and on (run, rank) "
            f"gradtrace_steps_total offset {span(6600)}",
            0,
            "warning",
            "more than twice as many spikes in this hour as in the one before",
            "Compare learning rate and clipping with an hour ago; `gradtrace spikes RUN` lists "
            "what the newest have in common.",
            "spike",
        ),
        Rule(
            "GradtracePeriodicSpikes",
            f"count_over_time(({ten_minutes} > 0)[{span(3600)}:{span(600)}]) >= 5",
            0,
            "warning",
            "spikes in nearly every ten minutes of the last hour",
            "Spikes that come back are samples that come back, or something done every so many "
            "steps: `gradtrace spikes RUN` matches the period, `gradtrace bad-batches RUN` lists "
            "the samples.",
            "spike",
        ),
        Rule(
            "GradtraceNonFinite",
            happened("gradtrace_nonfinite_steps_total"),
            0,
            "critical",
            "NaN or Inf in the loss or the gradients",
            "The nonfinite event in `gradtrace show RUN` names the first bad layer in forward and "
            "in backward order. Stop before a checkpoint is overwritten.",
            "nonfinite",
        ),
        Rule(
            "GradtraceStepsSkipped",
            # The second half is for steps that take half a minute and more.
            " or ".join(
                f"(increase(gradtrace_skipped_steps_total[{span(window)}]) >= {fewest} and "
                f"increase(gradtrace_skipped_steps_total[{span(window)}]) > "
                f"{SKIPPED_OFTEN} * increase(gradtrace_steps_total[{span(window)}]))"
                for window, fewest in ((300, 10), (3600, 8))
            ),
            0,
            "critical",
            "the loss scaler skips most steps",
            "The scale falls until steps succeed; when it does not help, a value overflows in the "
            "forward pass: look at max_abs of activations.",
        ),
        Rule(
            "GradtraceClippingAlways",
            f"gradtrace_clip_fraction >= {CLIPPED_OFTEN} and gradtrace_steps_total > 200 "
            f"and {ACTIVE}",
            600 * scale,
            "info",
            "nearly every step is clipped",
            "Clipping then sets the learning rate: raise max_norm to the 95th percentile that "
            "`gradtrace show RUN` prints, or lower the learning rate on purpose.",
        ),
        Rule(
            "GradtraceVanishingLayer",
            "gradtrace_layer_grad_norm < on (run, rank) group_left () "
            f"{VANISHING_SHARE} * (gradtrace_grad_norm < Inf) and {ACTIVE}",
            300 * scale,
            "warning",
            "almost no gradient reaches {{ $labels.layer }}",
            "A dead activation, a detached branch or a saturated softmax before it: compare "
            "zero_fraction of the layers around it.",
        ),
        Rule(
            "GradtraceExplodingLayer",
            # A layer that was frozen, at 0, has no usual size.
            f"gradtrace_layer_grad_norm > ({EXPLODING_RATIO:g} * quantile_over_time(0.5, "
            f"gradtrace_layer_grad_norm[{span(3600)}] offset {span(300)}) > 0) and {ACTIVE}",
            120 * scale,
            "critical",
            "the gradient of {{ $labels.layer }} is "
            f"{EXPLODING_RATIO:g} times its usual size, and stays there",
            "Look at the learning rate, and at the first layer that rose in "
            "`gradtrace spikes RUN`; go back to a checkpoint from before.",
        ),
        Rule(
            "GradtraceLossNotFalling",
            # A NaN, which equals nothing, would spoil the whole mean.
            f"avg_over_time((gradtrace_loss < Inf)[{span(3600)}:{span(30)}]) >= "
            f"avg_over_time((gradtrace_loss < Inf)[{span(3600)}:{span(30)}] offset {span(3600)}) "
            f"and {ACTIVE}",
            1800 * scale,
            "info",
            "the loss is no lower than an hour before",
            "At the end of a schedule this is as it should be. Before it: learning rate, clipping "
            "fraction and update ratios of the layers.",
        ),
        Rule(
            "GradtraceTrainerStuck",
            f"({idle} > {600 * scale:g} or ({idle} > {120 * scale:g} and "
            f"increase(gradtrace_steps_total[{span(1800)}] offset {span(300)}) > 300) "
            # Or the first step has not come: its value is how long that is known.
            f"or (gradtrace_steps_total == 0 and gradtrace_steps_total offset {span(600)} == 0) "
            f"+ {600 * scale:g}) and {ACTIVE}",
            0,
            "critical",
            "no step for {{ $value | humanizeDuration }}",
            "The process answers, the loop does not: a data loader that waits, a collective that "
            "one rank never joined, or an evaluation (then raise the rule's threshold). "
            "`py-spy dump` shows where it stands.",
        ),
        Rule(
            "GradtraceExporterDropping",
            happened("gradtrace_dropped_records_total"),
            0,
            "warning",
            "records for {{ $labels.exporter }} are lost",
            "Its backend is slow or down and there is no run log to catch up from: set "
            "`directory`, or look at that server.",
        ),
        Rule(
            "GradtraceRunVanished",
            f"last_over_time(gradtrace_run_active[{span(900)}]) == 1 unless gradtrace_run_active",
            60 * scale,
            "warning",
            "the run can no longer be scraped: it has ended or died",
            "`gradtrace runs` tells how it ended; one that still says running was killed. What it "
            "owed to other exporters goes out with `gradtrace send`.",
        ),
    )


PLACES = {
    # Of a run that has vanished meanwhile, what was last seen.
    "spike": (
        "last_over_time(gradtrace_last_spike_step%s[1h])",
        # Below 0 it says that no batch is to blame.
        "last_over_time(gradtrace_last_spike_batch_index%s[1h]) >= 0",
    ),
    "nonfinite": (
        "last_over_time(gradtrace_last_nonfinite_step%s[1h])",
        "last_over_time(gradtrace_last_nonfinite_batch_index%s[1h])",
    ),
    "step": (
        "last_over_time(gradtrace_steps_total%s[1h]) - 1 >= 0",
        "last_over_time(gradtrace_last_step_batch_index%s[1h])",
    ),
}
"""Queries for the step and the batch index that an alert is about; `%s` selects run and rank."""


def looked_up(query: str) -> str:
    """A template that gives what a query says of the alert's run and rank."""
    selected = query % "{run=%q,rank=%q}"
    asked = f'printf "{selected}" $labels.run $labels.rank | query'
    return "{{ with " + asked + ' }}{{ . | first | value | printf "%.0f" }}{{ else }}-{{ end }}'


def where(about: str) -> str:
    """The template that names run, rank, step and batch."""
    step, batch = map(looked_up, PLACES[about])
    return (
        f"run {{{{ $labels.run }}}} rank {{{{ $labels.rank }}}}, step {step}, batch index {batch}"
    )


def prometheus_rules(*, scale: float = 1.0) -> str:
    """Prometheus' rule file, YAML."""
    lines = [
        "# Alerts on what gradtrace exports. Windows are meant for runs of hours and days.",
        "groups:",
        "  - name: gradtrace",
        "    rules:",
    ]
    for rule in rules(scale=scale):
        lines += [
            f"      - alert: {rule.name}",
            f"        expr: {quoted(rule.expr)}",
            *([f"        for: {round(rule.hold)}s"] if rule.hold else []),
            "        labels:",
            f"          severity: {rule.severity}",
            "        annotations:",
            f"          summary: {quoted('{{ $labels.run }}: ' + rule.summary)}",
            f"          description: {quoted(where(rule.about))}",
            f"          next: {quoted(rule.advice)}",
        ]
        lines += [
            f"          {name}: {quoted(looked_up(query))}"
            for name, query in zip(("step", "batch_index"), PLACES[rule.about], strict=True)
        ]
    return "\n".join(lines) + "\n"


def grafana_rules(*, datasource: str = "gradtrace-prometheus", scale: float = 1.0) -> str:
    """The same as Grafana-managed rules, YAML for provisioning."""
    lines = ["apiVersion: 1", "groups:", "  - orgId: 1", "    name: gradtrace"]
    lines += ["    folder: gradtrace", "    interval: 1m", "    rules:"]
    for rule in rules(scale=scale):
        lines += _grafana_rule(rule, datasource)
    return "\n".join(lines) + "\n"


def grafana_expr(rule: Rule) -> str:
    """The expression for Grafana, whose templates cannot ask for another series.

    Step and batch index of an event are labels of the alert. Those of the last step would be new
    at every look, and no alert would last.
    """
    # Whatever the expression leaves alerts, also where its value is 0: its 0th power is 1.
    expr = f"({rule.expr}) ^ 0"
    if rule.about == "step":
        return expr
    step, batch = (query % "" for query in PLACES[rule.about])
    known = f"{batch} or on (run, rank) (0 * {step} - 1)"
    index = f'count_values by (run, rank) ("batch_index", {known})'
    return (
        f"({expr}) * on (run, rank) group_left (step, batch_index) ("
        f'count_values by (run, rank) ("step", {step}) '
        "* on (run, rank) group_left (batch_index) "
        f'label_replace({index}, "batch_index", "unknown", "batch_index", "-1"))'
    )


def _grafana_rule(rule: Rule, datasource: str) -> Iterator[str]:
    expr = grafana_expr(rule)
    yield f"      - uid: {rule.name.lower()}"
    yield f"        title: {rule.name}"
    yield "        condition: B"
    yield f"        for: {round(rule.hold)}s"
    yield "        noDataState: OK"
    yield "        execErrState: Error"
    yield "        data:"
    yield "          - refId: A"
    yield "            relativeTimeRange: {from: 600, to: 0}"
    yield f"            datasourceUid: {datasource}"
    yield f"            model: {{refId: A, instant: true, expr: {quoted(expr)}}}"
    yield "          - refId: B"
    yield "            datasourceUid: __expr__"
    yield "            model:"
    yield "              refId: B"
    yield "              type: threshold"
    yield "              expression: A"
    yield "              conditions:"
    yield "                - evaluator: {type: gt, params: [0]}"
    yield f"        labels: {{severity: {rule.severity}}}"
    yield "        annotations:"
    # Its $value is that of the threshold.
    summary = rule.summary.replace(" for {{ $value | humanizeDuration }}", " for long")
    yield f"          summary: {quoted('{{ $labels.run }}: ' + summary)}"
    place = "run {{ $labels.run }} rank {{ $labels.rank }}"
    if rule.about == "step":
        place += ", its last step; the dashboard shows which that is"
    else:
        place += ", step {{ $labels.step }}, batch index {{ $labels.batch_index }}"
    yield f"          description: {quoted(place)}"
    yield f"          next: {quoted(rule.advice)}"


def quoted(text: str) -> str:
    """A YAML scalar; JSON's strings are YAML's."""
    return json.dumps(text, ensure_ascii=False)
