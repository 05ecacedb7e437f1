"""Samples as text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest
from build import step, table
from fresh_runs import fresh_run
from prometheus_client.parser import text_string_to_metric_families as plain_text
from scrapes import fetch

from gradtrace.exporters import PrometheusExporter
from gradtrace.exporters._exposition import label_text, label_texts, number, render
from gradtrace.metrics.samples import Exemplar, Family, Labels
from gradtrace.metrics.table import METRICS


def test_a_page_of_5000_series_is_made_in_milliseconds() -> None:
    """By hand it is at least five times as fast as prometheus-client is with the same samples."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector

    exporter = PrometheusExporter(port=0, layers=["*"], max_series=10_000)
    exporter.open(fresh_run())
    try:
        layers = [f"blocks.{k}.weight" for k in range(2500)]
        exporter.export([step(gradients=table(layers, norm=0.123456789, zero_fraction=1 / 3))])
        page = fetch(exporter)
        [*families] = plain_text(page)

        class Same(Collector):
            def collect(self) -> Iterator[GaugeMetricFamily]:
                for family in families:
                    made = GaugeMetricFamily(family.name, family.documentation)
                    made.samples = family.samples
                    yield made

        registry = CollectorRegistry()
        registry.register(Same())
        ours, theirs = [], []
        for _ in range(15):
            began = time.perf_counter()
            exporter._page("")
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            generate_latest(registry)
            theirs.append(time.perf_counter() - began)
    finally:
        exporter.close()
    assert page.count("\n") > 5000
    assert min(theirs) > 5 * min(ours)


def test_a_page_is_written_as_the_formats_have_it() -> None:
    """Help, type, labels, exact values; exemplars and bare names of totals in OpenMetrics only."""
    labels = Labels([("run", 'a"b\\\n'), ("rank", "0")])
    exemplar = Exemplar(Labels([("step", "4")]), 1.0, 1000.5)
    by_key = {metric.key: metric for metric in METRICS}
    families: list[Family] = [
        (by_key["loss"], [(labels, 0.1, None)]),
        (by_key["skipped_steps"], [(labels, math.inf, exemplar)]),
    ]
    shown = r'{run="a\"b\\\n",rank="0"}'
    texts = label_texts(10)
    assert render(families, texts, openmetrics=False).decode() == (
        "# HELP gradtrace_loss Mean loss of the step's micro-batches\n"
        "# TYPE gradtrace_loss gauge\n"
        f"gradtrace_loss{shown} 0.1\n"
        "# HELP gradtrace_skipped_steps_total Steps the scaler skipped\n"
        "# TYPE gradtrace_skipped_steps_total counter\n"
        f"gradtrace_skipped_steps_total{shown} +Inf\n"
    )
    assert render(families, texts, openmetrics=True).decode().splitlines()[3:] == [
        "# HELP gradtrace_skipped_steps Steps the scaler skipped",
        "# TYPE gradtrace_skipped_steps counter",
        f'gradtrace_skipped_steps_total{shown} +Inf # {{step="4"}} 1.0 1000.500',
        "# EOF",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1.0"), (0.1, "0.1"), (math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf")],
)
def test_numbers_are_exact(value: float, text: str) -> None:
    """As Prometheus reads them."""
    assert number(value) == text


def test_labels_are_written_once() -> None:
    """The text of a series' labels is kept as long as there are not far too many of them."""
    texts = label_texts(1)
    some = [Labels([("n", str(n))]) for n in range(9)]
    assert texts[some[0]] is texts[some[0]] and texts[Labels([])] == ""
    for labels in some:
        assert texts[labels] == label_text(labels)
        assert len(texts) <= 4
