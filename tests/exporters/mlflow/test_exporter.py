"""Runs in MLflow, on a real server."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from build import healthy
from fresh_python import run_python
from fresh_runs import fresh_run
from mlflow_runs import assert_complete, history, info_of, patient, send
from mlflow_server import LossyProxy, MlflowServer, black_hole, free_port
from patience import patience
from rich_records import rich_records
from spiking import dataset, train

from gradtrace import load_run
from gradtrace.exporters.mlflow import MLflowExporter
from gradtrace.metrics.run_summary import RunTotals
from gradtrace.metrics.step_values import StepValues
from gradtrace.pipeline.send import deliver
from gradtrace.runlog.backlog import Backlog


def test_an_own_run_tells_all(
    server: MlflowServer, client: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without an active run there is one of its own, with values, parameters, summary and files."""
    exporter = patient(server.url, experiment="own runs")
    assert exporter.run_id is None
    config = {"lr": 1e-3, "model": {"width": 8, "shape": (6, 8)}, "text": "x" * 9000}
    _, trace = train(dataset(3, 77, 200), tmp_path, run="mine", config=config, exporters=[exporter])
    assert trace.notes == [] and trace.path is not None and trace.spikes
    assert_complete(client, exporter.run_id, trace.path)

    run = client.get_run(exporter.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "own runs"
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params == {
        "lr": "0.001",
        "model.width": "8",
        "model.shape": "[6, 8]",
        "text": "x" * 497 + "...",
    }
    assert run.data.tags["gradtrace.run"] == "mine"
    assert run.data.tags["gradtrace.status"] == "closed"
    assert run.data.tags["gradtrace.version"]
    assert run.data.tags["gradtrace.spikes"] == str(len(trace.spikes))
    last = trace.steps[-1].step
    assert set(history(client, exporter.run_id, "gradtrace/grad_norm_p95")) == {last + 1}
    assert run.data.metrics["gradtrace/spikes"] == len(trace.spikes)
    assert 0 < run.data.metrics["gradtrace/spike_share"] < 1

    files = {file.path for file in client.list_artifacts(exporter.run_id, "gradtrace")}
    assert files == {
        "gradtrace/events.jsonl",
        "gradtrace/run.json",
        "gradtrace/loss_and_grad_norm.png",
    }
    fetched = Path(client.download_artifacts(exporter.run_id, "gradtrace", str(tmp_path)))
    assert (fetched / "events.jsonl").read_bytes() == (trace.path / "events.jsonl").read_bytes()
    assert (fetched / "loss_and_grad_norm.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((fetched / "run.json").read_text())["status"] == "finished"
    assert capfd.readouterr().out == ""


def test_odd_names_are_taken(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    """Names with quotes, newlines, slashes, emoji, 500 characters all arrive, each for itself."""
    odd = [
        "a'b\"c",
        "a\nb",
        "a\tb",
        "/x//../y/",
        "..",
        "\N{FIRE}",
        "n" * 500,
        "n" * 501,
        "good one",
    ]
    exporter = patient(server.url, experiment='it\'s "odd" \N{FIRE}')
    exporter.open(fresh_run("a 'run' \"of\" \N{FIRE}", config={name: name for name in odd}))
    logged = {name: float(at) for at, name in enumerate(odd)}
    exporter.export([healthy(0, logged=logged)])
    exporter.close()
    run = client.get_run(exporter.run_id)
    found = [v for k, v in run.data.metrics.items() if k.startswith("gradtrace/logged/")]
    assert sorted(found) == sorted(logged.values())
    assert run.data.metrics["gradtrace/logged/good one"] == 8.0
    assert len(run.data.params) == len(odd) and run.data.params["good one"] == "good one"
    assert run.info.run_name == "a 'run' \"of\" \N{FIRE}"


def test_what_is_not_finite_is_not_sent(server: MlflowServer, client: Any) -> None:
    """A step with NaN or Inf is counted; its NaN and Inf stay away and hold up nothing."""
    exporter = patient(server.url)
    exporter.open(fresh_run())
    bad = {"nan": math.nan, "inf": math.inf, "good": 1.0}
    exporter.export([healthy(0), healthy(1, loss=math.nan, norm=math.inf, logged=bad), healthy(2)])
    exporter.close()
    assert set(history(client, exporter.run_id, "gradtrace/loss")) == {0, 2}
    assert set(history(client, exporter.run_id, "gradtrace/grad_norm")) == {0, 2}
    assert history(client, exporter.run_id, "gradtrace/nonfinite_steps")[1] == 1
    metrics = client.get_run(exporter.run_id).data.metrics
    assert "gradtrace/logged/good" in metrics
    assert not {"gradtrace/logged/nan", "gradtrace/logged/inf"} & set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.slow
def test_a_file_store_takes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that keeps a file for each key has all values, parameters and the whole summary."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    records = rich_records(120)
    exporter = MLflowExporter(uri)
    exporter.open(fresh_run(config={"a": 1, "a/b": 2, "c": {"d/e": 3}}))
    exporter.export(records[:50])
    exporter.export(records[50:])
    with caplog.at_level(logging.WARNING, "gradtrace"):
        exporter.close()
    assert caplog.text == ""
    there: Any = MlflowClient(uri)
    run = there.get_run(exporter.run_id)
    assert sorted(run.data.params.values()) == ["1", "2", "3"]

    values, totals = StepValues(fresh_run(), layers=5), RunTotals()
    expected: dict[str, dict[int, float]] = {}
    for one in records:
        totals.update(one)
        for key, value in (values.update(one) or {}).items():
            expected.setdefault(key, {})[one.step] = value
    for key, value in totals.values().items():
        expected.setdefault(key, {})[120] = value
    assert {"gradtrace/grad_norm", "gradtrace/grad_norm_p95", "gradtrace/lr"} <= expected.keys()
    assert run.data.metrics.keys() == expected.keys()
    for key, series in expected.items():
        assert history(there, exporter.run_id, key) == series, key


@pytest.mark.slow
def test_a_server_may_die_in_mid_run(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    """After SIGKILL and a restart nothing is missing and nothing is there twice."""
    exporter = MLflowExporter(server.url, timeout=patience(4))
    flushed: list[bool] = []

    def during(trace: Any, step: int) -> None:
        if step == 40:
            deadline = time.monotonic() + patience(30)
            while exporter.run_id is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert exporter.run_id is not None
        elif step == 120:
            server.kill()
        elif step == 300:
            server.start()
        elif step == 399:
            flushed.append(trace.flush(patience(60.0)))

    _, trace = train(dataset(3), tmp_path, epochs=8, exporters=[exporter], during=during)
    assert flushed == [True] and trace.notes == []
    assert trace.path is not None and len(load_run(trace.path).steps) == 400
    assert_complete(client, exporter.run_id, trace.path)
    assert client.get_run(exporter.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_what_a_silent_server_did_not_take_is_sent_later(
    server: MlflowServer, client: Any, tmp_path: Path
) -> None:
    """A black hole costs at most the close timeout; what is owed then arrives once, elsewhere."""
    with black_hole() as url:
        exporter = MLflowExporter(tracking_uri=url)
        ended: list[float] = []

        def during(trace: object, step: int) -> None:
            ended[:] = [time.monotonic()]

        _, trace = train(
            dataset(3), tmp_path, exporters=[exporter], close_timeout=2.0, during=during
        )
        assert time.monotonic() - ended[0] < 2.0 + patience(1.0)
        [note] = [note for note in trace.notes if note.source == "exporter mlflow"]
        assert "owes 100 steps" in note.message
        command = f"MLFLOW_TRACKING_URI={url} gradtrace send {trace.path} --to mlflow"
        assert f"`{command}`" in note.message
    assert trace.path is not None and exporter.run_id is None

    sent = send(trace.path, first := patient(server.url))
    assert sent.steps == 100
    assert_complete(client, first.run_id, trace.path)
    before = client.get_run(first.run_id)
    assert before.info.status == "FINISHED" and before.data.tags["gradtrace.status"] == "finished"

    # Nothing is owed now; and all of it once more changes nothing, with and without the file.
    assert send(trace.path, patient(server.url)).steps == 0
    for _ in range(2):
        once_more = patient(server.url)
        assert send(trace.path, once_more, again=True).steps == 100
        assert once_more.run_id == first.run_id
        assert_complete(client, first.run_id, trace.path)
        (trace.path / "mlflow.json").unlink()
    assert client.get_run(first.run_id).data.metrics == before.data.metrics


def test_counts_go_on_from_what_was_sent_before(
    server: MlflowServer, client: Any, tmp_path: Path
) -> None:
    """A process that sends the second half counts the spikes of the first, and sums up all."""
    _, trace = train(dataset(3), tmp_path)
    assert trace.path is not None and trace.spikes
    whole = patient(server.url)
    records, _, _ = Backlog(trace.path).read_since(0, 0, 1000)
    first = patient(server.url)
    first.open(info_of(trace.path))
    first.export(records[:90])
    whole.open(info_of(trace.path))
    whole.remember(records[:90])
    whole.export(records[90:])
    whole.close()
    assert whole.run_id == first.run_id
    assert_complete(client, whole.run_id, trace.path)
    metrics = client.get_run(whole.run_id).data.metrics
    assert metrics["gradtrace/spikes"] == len(trace.spikes)
    assert metrics["gradtrace/step"] == 99
    first.close()


def test_two_of_them_keep_apart(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    """Each has a run of its own, also on one server, and is continued there when sent later."""
    two = [patient(server.url) for _ in range(2)]
    _, trace = train(dataset(), tmp_path, epochs=1, exporters=two)
    assert trace.path is not None and two[0].run_id != two[1].run_id
    for exporter in two:
        assert_complete(client, exporter.run_id, trace.path)
    for name, before in zip(("mlflow", "mlflow-2"), two, strict=True):
        again = patient(server.url)
        deliver(Backlog(trace.path), info_of(trace.path), again, name=name, again=True)
        assert again.run_id == before.run_id
        assert_complete(client, again.run_id, trace.path)


def test_a_dead_server_fails_at_once() -> None:
    """Opening asks no server; an export to a dead one fails in a moment, closing sends nothing."""
    pytest.importorskip("mlflow")
    exporter = MLflowExporter(tracking_uri=f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    exporter.open(fresh_run())
    with pytest.raises(Exception, match="Connection refused"):
        exporter.export([healthy(0)])
    exporter.close()
    assert time.monotonic() - started < patience(3.0)


def test_closing_takes_no_longer_than_its_timeout(
    server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that falls silent at the end is left to itself, with a warning."""
    silent: list[bool] = []
    released = threading.Event()

    def stall(line: str) -> None:
        if silent:
            released.wait(patience(30))

    with LossyProxy(server.port, before=stall) as proxy:
        exporter = MLflowExporter(tracking_uri=proxy.url, timeout=2.0)
        exporter.open(fresh_run())
        exporter.export([healthy(0)])
        silent.append(True)
        started = time.monotonic()
        with caplog.at_level(logging.WARNING, "gradtrace"):
            exporter.close()
        assert time.monotonic() - started < patience(3.0)
        released.set()
    assert "could not send all of the end" in caplog.text


def test_passwords_stay_out_of_the_log(
    server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    """When the end cannot be sent, the warning shows the address without user and password."""
    dead: list[bool] = []
    with LossyProxy(server.port, lose=lambda line: bool(dead)) as proxy:
        uri = proxy.url.replace("://", "://me:secret@")
        exporter = MLflowExporter(tracking_uri=uri)
        exporter.open(fresh_run())
        exporter.export([healthy(0)])
        dead.append(True)
        with caplog.at_level(logging.WARNING, "gradtrace"):
            exporter.close()
    [told] = [r.getMessage() for r in caplog.records if r.name == "gradtrace"]
    assert "could not send all of the end" in told and "://***@127.0.0.1" in told
    assert "secret" not in told


def test_no_steps_make_no_run(server: MlflowServer, client: Any) -> None:
    """A trace that ends before its first step leaves nothing in MLflow."""
    before = len(client.search_runs(["0"]))
    exporter = patient(server.url)
    exporter.open(fresh_run())
    exporter.export([])
    exporter.close()
    assert exporter.run_id is None and len(client.search_runs(["0"])) == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tracking_uri": 5}, TypeError),
        ({"tracking_uri": ""}, ValueError),
        ({"experiment": ""}, ValueError),
        ({"experiment": ["x"]}, TypeError),
        ({"run_id": 7}, TypeError),
        ({"experiment": "x", "run_id": "y"}, ValueError),
        ({"layers": -1}, ValueError),
        ({"layers": "all"}, TypeError),
        ({"timeout": 0.5}, ValueError),
        ({"timeout": math.nan}, ValueError),
        ({"timeout": "10"}, TypeError),
    ],
)
def test_settings_are_checked_where_they_are_given(
    options: dict[str, Any], error: type[Exception]
) -> None:
    """The constructor refuses what is wrong, by its name."""
    pytest.importorskip("mlflow")
    with pytest.raises(error, match=next(iter(options))):
        MLflowExporter(**options)


def test_the_package_is_loaded_by_the_constructor_only() -> None:
    """Importing the module loads no mlflow; without it the constructor names the pip line."""
    code = (
        "import sys\n"
        "from gradtrace.exporters.mlflow import MLflowExporter\n"
        "assert 'mlflow' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "sys.modules['mlflow'] = None\n"
        "try: MLflowExporter()\n"
        "except ImportError as error: print(error)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert 'pip install "gradtrace[mlflow]"' in done.stdout
