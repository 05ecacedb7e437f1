"""A real Prometheus that scrapes a real training, for the rules and the dashboard."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_servers import Prometheus, eventually, prometheus
from spiking import dataset, train

from gradtrace.exporters import PrometheusExporter


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a real training with a spike, as long as the tests need it."""
    folder = tmp_path_factory.mktemp("scraped")
    exporter = PrometheusExporter(port=0)
    done = threading.Event()

    class OverError(Exception):
        """The way out of the loop."""

    def during(trace: Any, step: int) -> None:
        if step > 60:
            done.wait(0.05)
        if done.is_set():
            raise OverError

    def until_over() -> None:
        with contextlib.suppress(OverError):
            train(dataset(77), folder, epochs=2000, run="mine", exporters=[exporter], during=during)

    thread = threading.Thread(target=until_over)
    thread.start()
    try:
        url = str(eventually(lambda: exporter.url))
        config = f"""
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: gradtrace
    honor_labels: true
    static_configs: [{{targets: ["{url.split("/")[2]}"]}}]
"""
        with prometheus(folder, config) as server:
            eventually(lambda: server.value("gradtrace_last_spike_step") is not None)
            eventually(lambda: (server.value("count_over_time(gradtrace_loss[1m])") or 0) >= 4)
            yield server
    finally:
        done.set()
        thread.join()
