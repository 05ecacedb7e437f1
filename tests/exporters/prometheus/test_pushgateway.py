"""Runs at a real Pushgateway."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from fresh_runs import fresh_run
from patience import patience
from prometheus_servers import eventually, is_missing, pushgateway
from scrapes import everything, opened, scrape

from gradtrace.exporters.prometheus.pushgateway import check_gateway


@pytest.mark.skipif(
    is_missing("prometheus-pushgateway"), reason="prometheus-pushgateway is not installed"
)
def test_batch_jobs_are_pushed_and_taken_back(tmp_path: Path) -> None:
    """The gateway shows the run under its name while it goes on, and nothing after it."""

    def at(gateway: str) -> list[Any]:
        with urllib.request.urlopen(
            f"http://{gateway}/api/v1/metrics", timeout=patience(20)
        ) as answer:
            data: list[Any] = json.loads(answer.read())["data"]
            return data

    with pushgateway(tmp_path) as gateway:
        name = "a/b\n\N{FIRE}"
        with opened(
            fresh_run(name), pushgateway=gateway, job="train/7", push_every=0.05
        ) as exporter:
            exporter.export(everything())
            eventually(lambda: [g for g in at(gateway) if "gradtrace_loss" in g])
            [group] = at(gateway)
            assert group["labels"] == {"job": "train/7", "run": name, "rank": "0"}
            [sample] = group["gradtrace_steps_total"]["metrics"]
            assert float(sample["value"]) == 5 and sample["labels"]["run"] == name
            assert group["gradtrace_steps_total"]["type"] == "COUNTER"
            assert group["last_push_successful"] is True or group["push_time_seconds"]
        assert eventually(lambda: at(gateway) == [])  # the gateway answers before it deletes


@pytest.mark.skipif(
    is_missing("prometheus-pushgateway"), reason="prometheus-pushgateway is not installed"
)
@pytest.mark.parametrize("name", [".", "..", "..."])
def test_names_that_read_as_folders_are_pushed(tmp_path: Path, name: str) -> None:
    """Runs and jobs named "." and ".." are at the gateway by these names, and are taken back."""

    def at(gateway: str) -> list[Any]:
        with urllib.request.urlopen(
            f"http://{gateway}/api/v1/metrics", timeout=patience(20)
        ) as answer:
            data: list[Any] = json.loads(answer.read())["data"]
            return data

    with pushgateway(tmp_path) as gateway:
        with opened(fresh_run(name), pushgateway=gateway, job=name, push_every=0.05) as exporter:
            exporter.export(everything())
            [group] = eventually(lambda: [g for g in at(gateway) if "gradtrace_loss" in g])
            assert group["labels"] == {"job": name, "run": name, "rank": "0"}
        assert eventually(lambda: at(gateway) == [])  # the gateway answers before it deletes


@pytest.mark.parametrize(
    "gateway", ["http://me:secret@127.0.0.1:9091", "me:secret@127.0.0.1:9091", "http://secret@x"]
)
def test_a_password_in_the_gateways_address_is_refused(gateway: str) -> None:
    """It is refused with a word on `push_auth`, and not repeated."""
    check_gateway("http://127.0.0.1:9091/prefix")
    with pytest.raises(ValueError, match=r"pushgateway holds .*push_auth=") as caught:
        check_gateway(gateway)
    assert "secret" not in str(caught.value)


def test_a_gateway_that_is_down_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Without a gateway the endpoint serves on, and closing ends in time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = silent.getsockname()[1]
    with opened(pushgateway=f"127.0.0.1:{nobody}", push_every=0.01) as exporter:
        eventually(lambda: "Pushgateway" in caplog.text)
        exporter.export(everything())
        assert scrape(exporter)
        began = time.monotonic()
    assert time.monotonic() - began < patience(5)
    assert caplog.text.count("cannot reach the Pushgateway") == 1
