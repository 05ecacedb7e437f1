"""A PrometheusExporter, and its page as the official parsers see it."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
from build import healthy
from fresh_runs import fresh_run
from patience import patience
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from gradtrace.exporters import PrometheusExporter
from gradtrace.records import (
    ACTIVATION_COLUMNS,
    UPDATE_COLUMNS,
    BatchRef,
    Clip,
    LayerTable,
    Record,
    RunInfo,
    Spike,
)

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@contextlib.contextmanager
def opened(run: RunInfo | None = None, **options: Any) -> Iterator[PrometheusExporter]:
    exporter = PrometheusExporter(**{"port": 0} | options)
    exporter.open(run or fresh_run())
    try:
        yield exporter
    finally:
        exporter.close()


def fetch(exporter: PrometheusExporter, accept: str = "") -> str:
    assert exporter.url is not None
    request = urllib.request.Request(exporter.url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=patience(20)) as answer:
        text: str = answer.read().decode()
        return text


def scrape(exporter: PrometheusExporter) -> dict[tuple[str, ...], float]:
    """Values by name and the labels' values beside run and rank, as the official parser sees it."""
    found: dict[tuple[str, ...], float] = {}
    for family in plain_text(fetch(exporter)):
        for sample in family.samples:
            others = [v for k, v in sorted(sample.labels.items()) if k not in ("run", "rank")]
            key = (sample.name, *others)
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def parsed(page: str, accept: str) -> list[Any]:
    """The page's metrics, as the official parser of its format sees them."""
    parse: Any = openmetrics if accept else plain_text
    return list(parse(page))


def spike(step: int, signal: str = "loss", *, duration: int = 1, batch: int = 17) -> Spike:
    return Spike(
        step=step,
        time=1000.0 + step,
        severity="warning",
        message="high",
        signal=signal,
        value=9.0,
        baseline=1.0,
        ratio=9.0,
        score=2.0,
        duration=duration,
        batches=(BatchRef(0, batch - 1, batch - 1), BatchRef(0, batch, batch)),
        blamed=(BatchRef(0, batch, batch),),
    )


def everything() -> list[Record]:
    """A step that has a value for every metric, and a spike."""
    full = healthy(
        4,
        scores={"loss": 2.0, "grad_norm": 0.25},
        clip=Clip("norm", 1.0, 4.0, 1.0, 0.25, True),
        updates=LayerTable(("embed.weight",), np.array([[0.1, 1e-3]]), UPDATE_COLUMNS),
        overhead=0.5,
        bad=1,
        skipped=True,
        activations=LayerTable(("block",), np.ones((1, 8)), ACTIVATION_COLUMNS),
    )
    updates = LayerTable(
        ("embed.weight", "block.weight", "head.weight"), np.ones((3, 2)), UPDATE_COLUMNS
    )
    return [healthy(3, updates=updates), full, spike(4)]


def port_of(exporter: PrometheusExporter) -> int:
    return int(str(exporter.url).split(":")[2].split("/")[0])
