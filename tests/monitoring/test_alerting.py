"""From a traced loop to a webhook: the real Prometheus and Alertmanager, with the written files."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from patience import patience
from prometheus_servers import Webhook, alertmanager, eventually, is_missing, prometheus
from spiking import SAMPLES, dataset, train

from gradtrace.exporters import PrometheusExporter
from gradtrace.monitoring import prometheus_rules, write_monitoring

pytestmark = pytest.mark.skipif(
    is_missing("prometheus", "prometheus-alertmanager"),
    reason="Debian's packages prometheus and prometheus-alertmanager are not installed",
)

POISONED = 77
SCALE = 0.2
"""Two minutes become 24 seconds, the 10 seconds that a spike must be known become two."""


@pytest.mark.slow
def test_a_spike_reaches_the_webhook(tmp_path: Path) -> None:
    """One injected spike: the rule is pending, then fires; the webhook learns run, step, batch."""
    exporter = PrometheusExporter(port=0)
    told = threading.Event()
    began: list[float] = []
    traces: list[Any] = []

    def during(trace: Any, step: int) -> None:
        # The series must be known before the spike comes, and the run goes on after it.
        if step == SAMPLES // 8:
            traces.append(trace)
            eventually(lambda: seen(trace))
            began.append(time.monotonic())
        if began and not told.is_set():
            told.wait(0.02)

    def seen(trace: Any) -> bool:
        return "server" in known and known["server"].value("gradtrace_spikes_total") is not None

    known: dict[str, Any] = {}
    runner = threading.Thread(
        target=lambda: train(
            dataset(POISONED),
            tmp_path / "runs",
            run='a "run"',
            epochs=12,
            exporters=[exporter],
            during=during,
        )
    )
    runner.start()
    states: list[str] = []
    try:
        port = str(eventually(lambda: exporter.url)).split("/")[2]
        write_monitoring(tmp_path, targets=[port])
        (tmp_path / "gradtrace.rules.yml").write_text(prometheus_rules(scale=SCALE))
        with Webhook() as webhook:
            routes = (tmp_path / "alertmanager.yml").read_text()
            routes = routes.replace("http://host.docker.internal:9095/", webhook.url)
            with alertmanager(tmp_path, routes.replace("group_wait: 5s", "group_wait: 1s")) as to:
                config = (tmp_path / "prometheus.yml").read_text().replace("5s", "1s")
                with prometheus(tmp_path, config.replace("alertmanager:9093", to)) as server:
                    known["server"] = server
                    eventually(lambda: began)

                    def posted() -> list[dict[str, Any]]:
                        states.extend(
                            alert["state"]
                            for alert in server.get("alerts")["alerts"]
                            if alert["labels"]["alertname"] == "GradtraceSpike"
                        )
                        return [
                            alert
                            for message in list(webhook.posted)
                            for alert in message["alerts"]
                            if alert["labels"]["alertname"] == "GradtraceSpike"
                        ]

                    alerts = eventually(posted)
                    took = time.monotonic() - began[0]
                    told.set()
                    runner.join()
    finally:
        told.set()
        runner.join()
    assert "pending" in states and states.index("pending") < states.index("firing")
    assert took < patience(30)
    [trace] = traces
    spikes = {spike.step: spike.blamed[0].batch_index for spike in trace.spikes}
    for alert in alerts:
        assert alert["status"] == "firing"
        assert alert["labels"]["run"] == 'a "run"' and alert["labels"]["rank"] == "0"
        assert alert["labels"]["signal"] in ("loss", "grad_norm")
        notes = alert["annotations"]
        step = int(notes["step"])
        assert spikes[step] == int(notes["batch_index"])
        assert f"step {step}, batch index {notes['batch_index']}" in notes["description"]
        assert 'a "run"' in notes["summary"] and "gradtrace spikes RUN" in notes["next"]
