"""The metrics page, scraped by a real Prometheus server."""

from __future__ import annotations

import base64
import contextlib
import logging
import math
import multiprocessing
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import healthy
from fresh_python import run_python
from fresh_runs import fresh_run
from patience import patience
from prometheus_servers import eventually, is_missing, prometheus
from scrapes import OPENMETRICS, everything, fetch, opened, parsed, port_of, scrape, spike
from spiking import dataset, train

from gradtrace import load_run
from gradtrace.exporters import PrometheusExporter
from gradtrace.metrics.table import METRICS
from gradtrace.records import (
    MOMENT_COLUMNS,
    LayerTable,
    StepRecord,
)
from gradtrace.testing import FailingExporter

real = pytest.mark.skipif(
    is_missing("prometheus", "promtool"), reason="Debian's package prometheus is not installed"
)


def test_every_metric_is_shown_and_equal_to_the_run_log(tmp_path: Path) -> None:
    """After a real training the endpoint has every value of the last step, and right counts."""
    exporter = PrometheusExporter(port=0)
    pages: list[dict[tuple[str, ...], float]] = []

    def during(trace: Any, step: int) -> None:
        if step == 99:
            assert trace.flush(patience(30))
            pages.append(scrape(exporter))

    _, trace = train(dataset(3, 77, 200), tmp_path, exporters=[exporter], during=during)
    [page] = pages
    assert trace.path is not None and trace.spikes
    rows = load_run(trace.path).steps.to_pylist()
    last = rows[-1]
    assert page["gradtrace_loss",] == last["loss"]
    assert page["gradtrace_grad_norm",] == last["grad_norm"]
    assert page["gradtrace_grad_norm_clipped",] == last["norm_after"]
    assert page["gradtrace_clip_coefficient",] == last["clip_coefficient"]
    clipped = [row["clipped"] for row in rows]
    assert page["gradtrace_clip_fraction",] == sum(clipped[-100:]) / 100
    assert page["gradtrace_clipped_steps_total",] == sum(clipped) > 0
    assert page["gradtrace_learning_rate", "0"] == last["lr"][0]
    assert page["gradtrace_steps_total",] == len(rows) == 100
    assert page["gradtrace_last_step_timestamp_seconds",] == last["time"]
    assert page["gradtrace_run_active",] == 1
    for signal in ("loss", "grad_norm"):
        told = [s for s in trace.spikes if s.signal == signal and s.step < 99]
        assert page["gradtrace_spikes_total", signal] == len(told)
    newest = max((s for s in trace.spikes if s.step < 99), key=lambda s: s.step)
    assert page["gradtrace_last_spike_step",] == newest.step
    index = newest.blamed[0].batch_index if newest.blamed else -1
    assert page["gradtrace_last_spike_batch_index",] == index
    gradients = {row["layer"]: row for row in load_run(trace.path).gradients.to_pylist()[-4:]}
    assert page["gradtrace_layer_grad_norm", "0.weight"] == gradients["0.weight"]["norm"]
    group = math.hypot(gradients["0.weight"]["norm"], gradients["0.bias"]["norm"])
    assert page["gradtrace_layer_grad_norm", "0"] == pytest.approx(group, rel=1e-12)
    assert page["gradtrace_layer_zero_fraction", "0.bias"] == gradients["0.bias"]["zero_fraction"]
    # Updates were measured some steps ago: the last value stays.
    updates = [row for row in load_run(trace.path).updates.to_pylist() if row["layer"] == "2.bias"]
    assert page["gradtrace_layer_update_ratio", "2.bias"] == updates[-1]["ratio"]
    for row in load_run(trace.path).activations.to_pylist()[-3:]:
        for column in ("max_abs", "zero_fraction"):
            assert page[f"gradtrace_layer_activation_{column}", row["layer"]] == row[column]
    assert page["gradtrace_dropped_records_total", "prometheus"] == 0
    assert 0 < page["gradtrace_overhead_seconds_total",] < patience(10)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_table_of_metrics_is_what_is_served(accept: str) -> None:
    """Every metric of the table is there with its labels, run and rank; nothing else is."""
    with opened(fresh_run("r", rank=2)) as exporter:
        exporter.watch(lambda: {"mlflow": 3})
        exporter.export(everything())
        families = parsed(fetch(exporter, accept), accept)
    samples = [sample for family in families for sample in family.samples]
    by_name = {metric.prometheus: metric for metric in METRICS}
    assert {sample.name for sample in samples} == set(by_name)
    for sample in samples:
        assert set(sample.labels) == {"run", "rank", *by_name[sample.name].labels}
        assert sample.labels["run"] == "r" and sample.labels["rank"] == "2"
    kinds = {sample.name: family.type for family in families for sample in family.samples}
    assert {name for name, kind in kinds.items() if kind == "counter"} == {
        name for name in by_name if name.endswith("_total")
    }


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=abc",
        "application/openmetrics-text; escaping=allow-utf-8",
        "*/*;q=x",
        "\xe9",
    ],
)
def test_an_odd_accept_header_gets_a_page(accept: str) -> None:
    """Whatever a client says it takes, it gets one of the two formats, under its own name."""
    with opened() as exporter:
        exporter.export(everything())
        request = urllib.request.Request(str(exporter.url), headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=patience(20)) as answer:
            kind, body = answer.headers["Content-Type"], answer.read()
    assert body.endswith(b"# EOF\n") == kind.startswith("application/openmetrics-text; version=1.0")
    assert kind.startswith("text/plain; version=0.0.4") or body.endswith(b"# EOF\n")


def test_a_layer_without_a_gradient_is_not_shown() -> None:
    """What it had before is no news; its update's ratio, measured now and then, stays."""
    first, second, _ = everything()
    assert isinstance(second, StepRecord) and second.gradients is not None
    name = second.gradients.names[0]
    values = second.gradients.values.copy()
    values[0] = math.nan
    gone = replace(
        second,
        step=second.step + 1,
        gradients=LayerTable(second.gradients.names, values, second.gradients.columns),
        updates=None,
    )
    with opened() as exporter:
        exporter.export([first, second])
        assert ("gradtrace_layer_grad_norm", name) in scrape(exporter)
        exporter.export([gone])
        page = scrape(exporter)
    assert ("gradtrace_layer_grad_norm", name) not in page
    assert ("gradtrace_layer_zero_fraction", name) not in page
    assert ("gradtrace_layer_update_ratio", name) in page


def test_the_last_spike_is_the_newest() -> None:
    """One that lasted is told again at its end, after a newer one: that does not set it back."""
    with opened() as exporter:
        exporter.export([spike(4), spike(7), replace(spike(4), duration=5)])
        assert scrape(exporter)["gradtrace_last_spike_step",] == 7


def test_the_end_may_wait_for_a_scrape() -> None:
    """With `linger` the page is served on until the end was seen, and the port is free then."""
    exporter = PrometheusExporter(port=0, linger=60.0)
    exporter.open(fresh_run())
    closing = threading.Thread(target=exporter.close)
    began = time.monotonic()
    closing.start()
    pages: list[dict[tuple[str, ...], float]] = []

    def seen() -> bool:
        with contextlib.suppress(OSError):
            pages.append(scrape(exporter))
        return bool(pages) and pages[-1]["gradtrace_run_active",] == 0

    eventually(seen)
    closing.join(patience(30))
    assert not closing.is_alive() and time.monotonic() - began < patience(30)
    socket.create_server(("127.0.0.1", int(str(exporter.url).split(":")[2].split("/")[0]))).close()


def test_lingering_ends_with_the_traces_patience() -> None:
    """Leaving the `with` waits `close_timeout`; then nobody serves and nothing is owed."""
    exporter = PrometheusExporter(port=0, linger=60)
    before = set(threading.enumerate())
    _, trace = train(dataset(), None, epochs=1, exporters=[exporter], close_timeout=0.5)
    assert trace.notes == []
    assert set(threading.enumerate()) <= before
    socket.create_server(("127.0.0.1", port_of(exporter))).close()


def test_without_linger_the_end_waits_for_nobody() -> None:
    """Closing takes a moment, scraped or not."""
    exporter = PrometheusExporter(port=0)
    exporter.open(fresh_run())
    began = time.monotonic()
    exporter.close()
    assert time.monotonic() - began < patience(5)


def test_counters_begin_at_zero() -> None:
    """Before the first step all counters of what may happen are there, so the first increases."""
    with opened() as exporter:
        page = scrape(exporter)
    for name in ("steps", "nonfinite_steps", "skipped_steps", "clipped_steps", "overhead_seconds"):
        assert page[f"gradtrace_{name}_total",] == 0
    for signal in ("loss", "grad_norm"):
        assert page["gradtrace_spikes_total", signal] == 0
    assert page["gradtrace_run_active",] == 1
    assert ("gradtrace_loss",) not in page and ("gradtrace_last_spike_step",) not in page


def test_counters_name_their_step() -> None:
    """A counter's exemplar has step and batch of the newest increase; a long spike counts once."""
    with opened() as exporter:
        exporter.export([*everything(), healthy(5), spike(4, duration=3, batch=17)])
        exporter.export([spike(9, "grad_norm", batch=20)])
        exemplars = {
            (sample.name, sample.labels.get("signal")): (sample.value, sample.exemplar)
            for family in parsed(fetch(exporter, OPENMETRICS), OPENMETRICS)
            for sample in family.samples
            if sample.exemplar
        }
    assert {key: value for key, (value, _) in exemplars.items()} == {
        ("gradtrace_spikes_total", "loss"): 1,
        ("gradtrace_spikes_total", "grad_norm"): 1,
        ("gradtrace_nonfinite_steps_total", None): 1,
        ("gradtrace_skipped_steps_total", None): 1,
        ("gradtrace_clipped_steps_total", None): 1,
    }
    _, newest = exemplars["gradtrace_spikes_total", "loss"]
    assert newest.labels == {"step": "4", "batch_index": "17"}
    assert float(newest.timestamp) == 1004
    _, clipped = exemplars["gradtrace_clipped_steps_total", None]
    assert clipped.labels == {"step": "4", "batch_index": "4"}


def test_what_is_not_finite_is_shown_as_it_is() -> None:
    """NaN and Inf arrive as such, in values and in layers."""
    with opened() as exporter:
        exporter.export([healthy(0, loss=math.nan, norm=math.inf, layers=[math.inf, 1.0, 1.0])])
        page = scrape(exporter)
    assert math.isnan(page["gradtrace_loss",]) and page["gradtrace_grad_norm",] == math.inf
    assert page["gradtrace_layer_grad_norm", "embed.weight"] == math.inf
    assert page["gradtrace_nonfinite_steps_total",] == 1


ODD = ['a"b', "a\\nb", "a\nb", "a\\", "{}", "/x//y", "\N{FIRE}", "n" * 500, "\ud800", "a=b,c", " "]


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_odd_names_are_kept_apart(accept: str) -> None:
    """Quotes, newlines, backslashes, emoji, 500 characters: each name arrives as it is."""
    values = np.ones((len(ODD), len(MOMENT_COLUMNS)))
    values[:, 0] = np.arange(len(ODD))
    odd = StepRecord(step=0, time=1.0, gradients=LayerTable(tuple(ODD), values, MOMENT_COLUMNS))
    with opened(fresh_run(ODD[0] + ODD[2] + ODD[6]), layers=["*"]) as exporter:
        exporter.export([odd])
        samples = [
            sample
            for family in parsed(fetch(exporter, accept), accept)
            for sample in family.samples
            if sample.name == "gradtrace_layer_grad_norm"
        ]
    found = {sample.labels["layer"]: sample.value for sample in samples}
    expected = ["\\ud800" if name == "\ud800" else name for name in ODD]
    assert found == {name: float(at) for at, name in enumerate(expected)}
    assert {sample.labels["run"] for sample in samples} == {'a"ba\nb\N{FIRE}'}


def table(count: int, start: int = 0) -> StepRecord:
    names = tuple(f"blocks.{k}.weight" for k in range(start, start + count))
    values = np.random.default_rng(0).random((count, len(MOMENT_COLUMNS)))
    return StepRecord(step=0, time=1.0, gradients=LayerTable(names, values, MOMENT_COLUMNS))


def test_series_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """No model makes more than `max_series` series; that layers are left out is told, once."""
    with opened(layers=["*"]) as exporter:
        for _ in range(3):
            exporter.export([table(2000)])
            assert 600 < len(scrape(exporter)) <= 1000
    assert caplog.text.count("max_series=1000") == 1
    with opened() as exporter:
        exporter.export([table(50)])
        layers = {key[1] for key in scrape(exporter) if key[0] == "gradtrace_layer_grad_norm"}
    assert len(layers) == 50 + 20  # the groups, and the default's top layers


def test_layers_that_are_gone_are_not_shown() -> None:
    """When the measured layers change, the old ones' series end."""
    with opened(layers=["*"]) as exporter:
        exporter.export([table(5)])
        exporter.export([table(5, start=3)])
        layers = {key[1] for key in scrape(exporter) if key[0] == "gradtrace_layer_grad_norm"}
    assert layers == {f"blocks.{k}.weight" for k in range(3, 8)}


def test_scrapes_while_training(tmp_path: Path) -> None:
    """Scrapers that never stop see whole pages and counts that only rise; the training is the
    same to the last bit.
    """
    exporter = PrometheusExporter(port=0)
    counts: list[list[float]] = [[] for _ in range(4)]
    begun, done = threading.Event(), threading.Event()

    def read(into: list[float]) -> None:
        begun.wait()
        while not done.is_set():
            into.append(scrape(exporter)["gradtrace_steps_total",])

    threads = [threading.Thread(target=read, args=(into,)) for into in counts]
    for thread in threads:
        thread.start()

    def during(trace: Any, step: int) -> None:
        begun.set()
        if step == 99:
            done.set()
            for thread in threads:
                thread.join()

    model, trace = train(dataset(3, 77), tmp_path, exporters=[exporter], during=during)
    assert trace.notes == []
    for into in counts:
        assert into and into == sorted(into)
    bare, _ = train(dataset(3, 77), None)
    for mine, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert mine.equal(theirs)


def garbage(exporter: PrometheusExporter) -> int:
    with socket.create_connection(
        ("127.0.0.1", port_of(exporter)), timeout=patience(20)
    ) as connection:
        connection.sendall(b"\x00\xff nonsense\r\n\r\n")
        return int(connection.recv(100).split()[1])


def asking(exporter: PrometheusExporter, credentials: str | None) -> int:
    request = urllib.request.Request(str(exporter.url))
    if credentials is not None:
        token = base64.b64encode(credentials.encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=patience(20)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@contextlib.contextmanager
def repeated(*doing: Callable[[], int]) -> Iterator[list[set[int]]]:
    """Each of these again and again in a thread of its own, what they gave, each once at least."""
    told: list[set[int]] = [set() for _ in doing]
    done = threading.Event()

    def repeat(one: Callable[[], int], into: set[int]) -> None:
        while not done.is_set():
            into.add(one())

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(doing, told, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield told
        eventually(lambda: all(told))
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_abuse_while_training(tmp_path: Path) -> None:
    """Garbage, wrong passwords, headers that never end, and a forked process that stays: training
    is the same to the last bit, the right scraper is served, nothing is left and the port is free.
    """
    exporter = PrometheusExporter(port=0, auth=("me", "secret"))
    fork = multiprocessing.get_context("fork")
    ready, over = fork.Event(), fork.Event()
    child = fork.Process(target=hold, args=(ready, over))
    before = set(threading.enumerate())
    told: list[set[int]] = []
    with contextlib.ExitStack() as slow, contextlib.ExitStack() as abuse:

        def during(trace: Any, step: int) -> None:
            if step == 0:
                told[:] = abuse.enter_context(
                    repeated(
                        lambda: garbage(exporter),
                        lambda: asking(exporter, None),
                        lambda: asking(exporter, "me:other"),
                        lambda: asking(exporter, "me:secret"),
                    )
                )
                child.start()
                assert ready.wait(patience(60))
            if step % 10 == 0:
                address = ("127.0.0.1", port_of(exporter))
                connection = slow.enter_context(socket.create_connection(address))
                connection.sendall(b"GET /metrics HTTP/1.1\r\nA: ")
            if step == 99:
                abuse.close()

        try:
            model, trace = train(dataset(3, 77), tmp_path, exporters=[exporter], during=during)
            assert child.is_alive()
            socket.create_server(("127.0.0.1", port_of(exporter))).close()
            assert set(threading.enumerate()) <= before
        finally:
            over.set()
            child.join()
    assert told == [{400}, {401}, {401}, {200}]
    assert trace.notes == [] and len(trace.steps) == 100
    bare, _ = train(dataset(3, 77), None)
    for mine, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert mine.equal(theirs)


def test_a_taken_port_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Where the port is taken the next free one is used and shown; each rank has its own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if port > 65000:
            pytest.skip("no room above this port")
        with caplog.at_level(logging.WARNING, "gradtrace"), opened(port=port) as exporter:
            assert exporter.url is not None
            assert f"port {port} is taken; metrics are at {exporter.url}" in caplog.text
            assert scrape(exporter)
        with (
            opened(fresh_run(rank=0, world_size=2), port=port) as first,
            opened(fresh_run(rank=1, world_size=2), port=port) as second,
        ):
            ports = [int(str(e.url).split(":")[2].split("/")[0]) for e in (first, second)]
        assert (ports[0] - port) % 2 == 0 and (ports[1] - port) % 2 == 1
    with pytest.raises(OSError, match="no port is free"):
        PrometheusExporter(port=65535).open(fresh_run(rank=5))


def hold(ready: Any, done: Any) -> None:
    ready.set()
    done.wait(patience(60))


def test_a_worker_alive_at_close_does_not_keep_the_port(tmp_path: Path) -> None:
    """A process forked in mid-run outlives the trace, and the port is free all the same."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    child = context.Process(target=hold, args=(ready, done))

    def during(trace: Any, step: int) -> None:
        if step == 10:
            child.start()
            assert ready.wait(patience(60))

    exporter = PrometheusExporter(port=0)
    try:
        train(dataset(3), tmp_path, epochs=1, exporters=[exporter], during=during)
        assert child.is_alive()
        port = int(str(exporter.url).split(":")[2].split("/")[0])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    finally:
        done.set()
        child.join()
    assert child.exitcode == 0


def test_losses_of_other_exporters_are_counted() -> None:
    """Without a run log, what a dead backend cost is in the counter of its exporter."""
    exporter, dead = PrometheusExporter(port=0), FailingExporter(name="dead")
    seen: list[float] = []

    def during(trace: Any, step: int) -> None:
        if step == 99:
            for worker in trace._wiring.delivery._workers:
                if worker.name == "dead":
                    worker._queue._capacity = 1
        if step == 149:
            key = ("gradtrace_dropped_records_total", "dead")
            seen.append(eventually(lambda: scrape(exporter)[key]))
            assert scrape(exporter)["gradtrace_dropped_records_total", "prometheus"] == 0

    train(dataset(3), None, epochs=3, exporters=[exporter, dead], during=during, close_timeout=0.1)
    assert seen and seen[0] > 50


def test_what_was_sent_before_is_counted() -> None:
    """`remember` brings the counters up to date."""
    with opened() as exporter:
        exporter.remember([healthy(0), spike(0)])
        exporter.export([healthy(1)])
        page = scrape(exporter)
    assert page["gradtrace_spikes_total", "loss"] == 1 and page["gradtrace_steps_total",] == 2


@real
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_promtool_finds_nothing_to_blame(accept: str) -> None:
    """`promtool check metrics` is clean for a page with every metric."""
    with opened() as exporter:
        exporter.watch(lambda: {"mlflow": 0})
        exporter.export(everything())
        page = fetch(exporter)
    command = ["promtool", "check", "metrics"]
    done = subprocess.run(command, input=page, capture_output=True, text=True, timeout=patience(60))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def config(url: str, more: str = "") -> str:
    scheme, _, rest = url.partition("://")
    return f"""
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: gradtrace
    scheme: {scheme}
    honor_labels: true
    static_configs: [{{targets: ["{rest.partition("/")[0]}"]}}]
{more}"""


@pytest.mark.slow
@real
def test_a_real_server_scrapes_it(tmp_path: Path) -> None:
    """Prometheus stores values, counters, odd run names, and the exemplars with step and batch."""
    name = 'a "run"\n\\ \N{FIRE}'
    auth = "    basic_auth: {username: me, password: secret}\n"
    with opened(fresh_run(name), auth=("me", "secret")) as exporter:
        exporter.export(everything())
        assert exporter.url is not None
        with prometheus(tmp_path, config(exporter.url, auth)) as server:
            eventually(lambda: server.value("gradtrace_loss"))
            [steps] = server.query("gradtrace_steps_total")
            assert steps["metric"]["run"] == name and steps["metric"]["rank"] == "0"
            assert float(steps["value"][1]) == 5
            [target] = server.get("targets")["activeTargets"]
            assert target["health"] == "up" and target["lastError"] == ""
            exporter.export([spike(9, batch=20) for _ in range(1)])
            eventually(lambda: server.value('gradtrace_spikes_total{signal="loss"}') == 2)

            def exemplars() -> list[dict[str, Any]]:
                found: list[dict[str, Any]] = server.get(
                    "query_exemplars",
                    query="gradtrace_spikes_total",
                    start="0",
                    end=str(time.time() + 60),
                )
                return found

            [series] = eventually(exemplars)
            assert {"step": "9", "batch_index": "20"} in [e["labels"] for e in series["exemplars"]]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"port": "9464"}, TypeError, "port is '9464'"),
        ({"port": 65536}, ValueError, "port is 65536"),
        ({"port": True}, TypeError, "port is True"),
        ({"host": ""}, ValueError, "host is empty"),
        ({"layers": -1}, ValueError, "layers is -1"),
        ({"max_series": 0}, ValueError, "max_series is 0"),
        ({"tls": "cert.pem"}, TypeError, "certificate and key"),
        ({"tls": ("/none/cert.pem", "/none/key.pem")}, FileNotFoundError, "certificate and key"),
        ({"tls": (__file__, __file__)}, ValueError, "OpenSSL"),
        ({"auth": "me:secret"}, TypeError, "auth is a str"),
        ({"auth": ("me", "")}, ValueError, "no password"),
        ({"auth": ("m:e", "secret")}, ValueError, "a colon"),
        ({"pushgateway": ""}, ValueError, "pushgateway is empty"),
        ({"job": ""}, ValueError, "job is empty"),
        ({"linger": -1}, ValueError, "0 or more"),
        ({"linger": "long"}, TypeError, "such as 10"),
        ({"push_every": 0}, ValueError, "more than 0"),
        ({"push_every": "1"}, TypeError, "seconds"),
    ],
)
def test_settings_are_checked_where_they_are_given(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A wrong setting is refused by the constructor, by name, and no secret is repeated."""
    with pytest.raises(error, match=words) as caught:
        PrometheusExporter(**options)
    assert "secret" not in str(caught.value)


def test_serving_needs_no_package() -> None:
    """Without prometheus-client a run is served; only `pushgateway` asks for it, by pip line."""
    code = (
        "import sys, urllib.request\n"
        "sys.modules['prometheus_client'] = None\n"
        "from gradtrace.exporters.prometheus import PrometheusExporter\n"
        "from gradtrace.records import RunInfo, StepRecord\n"
        "exporter = PrometheusExporter(0)\n"
        "exporter.open(RunInfo(name='run', started=0.0))\n"
        "exporter.export([StepRecord(step=6, time=1.0, loss=2.0)])\n"
        "page = urllib.request.urlopen(exporter.url, timeout=60).read().decode()\n"
        "exporter.close()\n"
        'assert \'gradtrace_steps_total{run="run",rank="0"} 7.0\' in page, page\n'
        "try: PrometheusExporter(pushgateway='127.0.0.1:9091')\n"
        "except ImportError as error: print(error)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert 'pip install "gradtrace[pushgateway]"' in done.stdout


def test_the_package_is_loaded_for_pushing_only() -> None:
    """Nothing but `pushgateway` loads prometheus-client, and its global registry is left alone."""
    code = (
        "import sys, gradtrace.exporters.prometheus as p\n"
        "p.PrometheusExporter(port=0)\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "p.PrometheusExporter(port=0, pushgateway='127.0.0.1:9091')\n"
        "from prometheus_client import REGISTRY, generate_latest\n"
        "assert b'gradtrace' not in generate_latest(REGISTRY)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
