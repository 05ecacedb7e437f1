"""Samples as text."""

from __future__ import annotations

import time
from collections.abc import Iterator

from build import step, table
from fresh_runs import fresh_run
from prometheus_client.parser import text_string_to_metric_families as plain_text
from scrapes import fetch

from gradtrace.exporters import PrometheusExporter


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
