from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import LossyProxy, MlflowServer, black_hole, free_port, is_missing
from rich_records import rich_records
from run_values import values_of
from spike_records import record
from spiking import dataset, train

from gradtrace import load_run
from gradtrace.exporters._keys import flat_params
from gradtrace.exporters.mlflow.exporter import MLflowExporter
from gradtrace.metrics.run_summary import RunTotals
from gradtrace.metrics.step_values import StepValues
from gradtrace.pipeline.send import Delivered, deliver
from gradtrace.records import RunInfo
from gradtrace.runlog import Backlog

pytestmark = pytest.mark.skipif(is_missing(), reason="the mlflow server is not installed")


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def client(server: MlflowServer) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server.url)


COUNTS = {"spikes", "nonfinite_steps", "spike_score", "overhead_seconds", "dropped_records"}
SUMMARY = {"clip", "spike_share", "overhead_ratio", "suggested_clip_norm", "loss"} | {
    f"grad_norm_p{percentile}" for percentile in (50, 95, 99)
}


def history(client: Any, run_id: str | None, key: str) -> dict[int, float]:
    """Values by step; fails when a step is there twice."""
    found = client.get_metric_history(run_id, key)
    values = {metric.step: metric.value for metric in found}
    assert len(values) == len(found), f"{key} has steps twice"
    return values


def assert_complete(client: Any, run_id: str | None, path: Path) -> None:
    """Every step's values are there as the run log has them; no key has a step twice."""
    wanted = values_of(path)
    assert wanted["loss"]
    found = {key: history(client, run_id, key) for key in client.get_run(run_id).data.metrics}
    for key, series in wanted.items():
        values = found.pop(f"gradtrace/{key}")
        values.pop(max(wanted["loss"]) + 1, None)  # the summary
        assert values == pytest.approx(series, rel=1e-12), key
    # The rest is counts of events, shares of zeros in groups, and the summary.
    rest = {key.split("/")[1] for key in found if key.startswith("gradtrace/")}
    assert rest <= {"layers", *COUNTS, *SUMMARY}


def send(path: Path, exporter: MLflowExporter, *, again: bool = False) -> Delivered:
    """What `gradtrace send` does."""
    return deliver(Backlog(path), info_of(path), exporter, again=again)


def info_of(path: Path) -> RunInfo:
    """What a later process knows of the run."""
    names = {field.name for field in dataclasses.fields(RunInfo)}
    known = {key: value for key, value in load_run(path).info.items() if key in names}
    return RunInfo(**known | {"path": path})


def info(name: str = "run", **fields: Any) -> RunInfo:
    return RunInfo(name=name, started=time.time(), **fields)


def test_an_own_run_tells_all(
    server: MlflowServer, client: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without an active run there is one of its own, with values, parameters, summary and files."""
    exporter = MLflowExporter(tracking_uri=server.url, experiment="own runs")
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


def test_the_active_run_is_joined_and_left_active(
    server: MlflowServer, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the user's run all stands beside the user's own values, and the run goes on."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    with mlflow.start_run() as active:
        mlflow.log_param("lr", "theirs")
        exporter = MLflowExporter()
        seen: list[bool] = []

        def during(trace: object, step: int) -> None:
            seen.append("MLFLOW_HTTP_REQUEST_TIMEOUT" in os.environ)

        _, trace = train(
            dataset(),
            tmp_path,
            epochs=1,
            config={"lr": 1.0, "width": 8},
            exporters=[exporter],
            during=during,
        )
        assert exporter.run_id == active.info.run_id
        # The user's own calls keep MLflow's patience.
        assert not any(seen)
        assert mlflow.active_run() is not None
        mlflow.log_metric("theirs", 1.0)
        run = client.get_run(active.info.run_id)
        assert run.info.status == "RUNNING"
        assert run.data.params == {"lr": "theirs", "width": "8"}
        assert run.data.metrics["theirs"] == 1.0
        assert run.data.tags["gradtrace.run"] == trace.name
    assert trace.path is not None
    assert_complete(client, exporter.run_id, trace.path)
    # A later process goes on in the same run.
    later = MLflowExporter()
    send(trace.path, later, again=True)
    assert later.run_id == active.info.run_id
    assert_complete(client, later.run_id, trace.path)


def test_a_run_can_be_named_by_its_id(server: MlflowServer, client: Any) -> None:
    """`run_id` joins that run, and does not end it."""
    made = client.create_run("0")
    exporter = MLflowExporter(tracking_uri=server.url, run_id=made.info.run_id)
    exporter.open(info())
    exporter.export([record(0)])
    exporter.close()
    assert exporter.run_id == made.info.run_id
    assert set(history(client, made.info.run_id, "gradtrace/loss")) == {0}
    assert client.get_run(made.info.run_id).info.status == "RUNNING"


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
    exporter = MLflowExporter(tracking_uri=server.url, experiment='it\'s "odd" \N{FIRE}')
    exporter.open(info("a 'run' \"of\" \N{FIRE}", config={name: name for name in odd}))
    logged = {name: float(at) for at, name in enumerate(odd)}
    exporter.export([record(0, logged=logged)])
    exporter.close()
    run = client.get_run(exporter.run_id)
    found = [v for k, v in run.data.metrics.items() if k.startswith("gradtrace/logged/")]
    assert sorted(found) == sorted(logged.values())
    assert run.data.metrics["gradtrace/logged/good one"] == 8.0
    assert len(run.data.params) == len(odd) and run.data.params["good one"] == "good one"
    assert run.info.run_name == "a 'run' \"of\" \N{FIRE}"


def test_what_is_not_finite_is_not_sent(server: MlflowServer, client: Any) -> None:
    """A step with NaN or Inf is counted; its NaN and Inf stay away and hold up nothing."""
    exporter = MLflowExporter(tracking_uri=server.url)
    exporter.open(info())
    bad = {"nan": math.nan, "inf": math.inf, "good": 1.0}
    exporter.export([record(0), record(1, loss=math.nan, norm=math.inf, logged=bad), record(2)])
    exporter.close()
    assert set(history(client, exporter.run_id, "gradtrace/loss")) == {0, 2}
    assert set(history(client, exporter.run_id, "gradtrace/grad_norm")) == {0, 2}
    assert history(client, exporter.run_id, "gradtrace/nonfinite_steps")[1] == 1
    metrics = client.get_run(exporter.run_id).data.metrics
    assert "gradtrace/logged/good" in metrics
    assert not {"gradtrace/logged/nan", "gradtrace/logged/inf"} & set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_run_without_a_single_good_value_has_no_figure(server: MlflowServer, client: Any) -> None:
    """Nothing but NaN still ends in a finished run with its summary."""
    exporter = MLflowExporter(tracking_uri=server.url)
    exporter.open(info())
    exporter.export([record(0, loss=math.nan, norm=math.nan)])
    exporter.close()
    run = client.get_run(exporter.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["gradtrace/nonfinite_steps"] == 1
    assert client.list_artifacts(exporter.run_id, "gradtrace") == []


def test_a_parameter_that_is_set_holds_up_nothing(
    server: MlflowServer, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 150 parameters one stands with another value: it stays, is named, the others arrive."""
    made = client.create_run("0")
    client.log_param(made.info.run_id, "p7", "theirs")
    exporter = MLflowExporter(tracking_uri=server.url, run_id=made.info.run_id)
    exporter.open(info(config={f"p{n}": n for n in range(150)}))
    with caplog.at_level(logging.WARNING, "gradtrace"):
        exporter.export([record(0)])
        exporter.close()
    params = client.get_run(made.info.run_id).data.params
    assert params == {f"p{n}": str(n) for n in range(150)} | {"p7": "theirs"}
    assert "p7" in caplog.text and "p8" not in caplog.text


def test_a_parameter_set_in_between_holds_up_nothing(
    server: MlflowServer, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that somebody sets after we looked is refused alone, not with its whole batch."""
    made = client.create_run("0")

    def interfere(line: str) -> None:
        if "log-batch" in line and not seen:
            seen.append(line)
            client.log_param(made.info.run_id, "b", "theirs")

    seen: list[str] = []
    with LossyProxy(server.port, before=interfere) as proxy:
        exporter = MLflowExporter(tracking_uri=proxy.url, run_id=made.info.run_id)
        exporter.open(info(config={"a": 1, "b": 2, "c": 3}))
        with caplog.at_level(logging.WARNING, "gradtrace"):
            exporter.export([record(0)])
        exporter.close()
    assert client.get_run(made.info.run_id).data.params == {"a": "1", "b": "theirs", "c": "3"}
    assert caplog.text.count("stay as they are there: b") == 1


def test_lost_answers_double_nothing(server: MlflowServer, client: Any) -> None:
    """Every other answer is lost after the server did its part: one run, every row once."""
    answers: dict[str, int] = {}

    def lose(line: str) -> bool:
        path = line.split("?")[0]
        answers[path] = answers.get(path, 0) + 1
        return answers[path] % 2 == 1

    run = info("lossy")
    records = [record(step, logged={f"k{n}": n for n in range(20)}) for step in range(60)]
    with LossyProxy(server.port, lose=lose) as proxy:
        exporter = MLflowExporter(tracking_uri=proxy.url, experiment="lossy", timeout=60)
        exporter.open(run)
        failures = 0
        for start in (0, 30):
            while True:
                try:
                    exporter.export(records[start : start + 30])
                    break
                except Exception:
                    failures += 1
                    assert failures < 50
        exporter.close()
        assert proxy.lost >= failures > 5
    experiment = client.get_experiment_by_name("lossy")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == exporter.run_id
    for key in found.data.metrics:
        if key.startswith("gradtrace/logged/") or key == "gradtrace/step":
            assert set(history(client, exporter.run_id, key)) == set(range(60)), key


@pytest.mark.slow
def test_a_server_may_die_in_mid_run(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    """After SIGKILL and a restart nothing is missing and nothing is there twice."""
    exporter = MLflowExporter(tracking_uri=server.url, timeout=4)
    flushed: list[bool] = []

    def during(trace: Any, step: int) -> None:
        if step == 40:
            deadline = time.monotonic() + 30
            while exporter.run_id is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert exporter.run_id is not None
        elif step == 120:
            server.kill()
        elif step == 300:
            server.start()
        elif step == 399:
            flushed.append(trace.flush(60.0))

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
        assert time.monotonic() - ended[0] < 3.0
        [note] = [note for note in trace.notes if note.source == "exporter mlflow"]
        assert "owes 100 steps" in note.message
        command = f"MLFLOW_TRACKING_URI={url} gradtrace send {trace.path} --to mlflow"
        assert f"`{command}`" in note.message
    assert trace.path is not None and exporter.run_id is None

    sent = send(trace.path, first := MLflowExporter(tracking_uri=server.url))
    assert sent.steps == 100
    assert_complete(client, first.run_id, trace.path)
    before = client.get_run(first.run_id)
    assert before.info.status == "FINISHED" and before.data.tags["gradtrace.status"] == "finished"

    # Nothing is owed now; and all of it once more changes nothing, with and without the file.
    assert send(trace.path, MLflowExporter(tracking_uri=server.url)).steps == 0
    for _ in range(2):
        once_more = MLflowExporter(tracking_uri=server.url)
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
    whole = MLflowExporter(tracking_uri=server.url)
    records, _, _ = Backlog(trace.path).read_since(0, 0, 1000)
    first = MLflowExporter(tracking_uri=server.url)
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


def test_a_run_that_is_gone_is_replaced(
    server: MlflowServer, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A deleted run of ours, or one this server never had, is not waited for."""
    _, trace = train(dataset(), tmp_path, epochs=1)
    assert trace.path is not None
    send(trace.path, first := MLflowExporter(tracking_uri=server.url))
    client.delete_run(first.run_id)
    send(trace.path, second := MLflowExporter(tracking_uri=server.url), again=True)
    assert second.run_id != first.run_id and str(first.run_id) in caplog.text
    assert_complete(client, second.run_id, trace.path)
    file = trace.path / "mlflow.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"run_id": "0" * 32}))
    send(trace.path, third := MLflowExporter(tracking_uri=server.url), again=True)
    assert third.run_id == second.run_id


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"run_id": 5, "own": true, "tracking_uri": null}', "[" * 100_000]
)
def test_a_damaged_file_is_no_file(server: MlflowServer, tmp_path: Path, text: str) -> None:
    """Whatever stands in mlflow.json, the run is found or made, and the file is right again."""
    (tmp_path / "mlflow.json").write_text(text)
    exporter = MLflowExporter(tracking_uri=server.url)
    exporter.open(info(path=tmp_path))
    exporter.export([record(0)])
    exporter.close()
    stored = json.loads((tmp_path / "mlflow.json").read_text())
    assert stored == {"run_id": exporter.run_id, "own": True, "tracking_uri": server.url}


def test_a_run_directory_does_not_choose_the_server(tmp_path: Path) -> None:
    """The address in mlflow.json is named in the error, and never contacted."""
    text = '{"run_id": "abc", "own": true, "tracking_uri": "http://elsewhere.invalid"}'
    (tmp_path / "mlflow.json").write_text(text)
    with pytest.raises(ValueError, match=r"elsewhere\.invalid.*MLFLOW_TRACKING_URI"):
        MLflowExporter().open(info(path=tmp_path))


def test_passwords_stay_out_of_the_run_directory(tmp_path: Path) -> None:
    """An address with user and password is not written down."""
    exporter = MLflowExporter(tracking_uri="http://me:secret@127.0.0.1:1", run_id="ab" * 16)
    exporter.open(info(path=tmp_path))
    exporter.close()
    assert "secret" not in (tmp_path / "mlflow.json").read_text()


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's patience is shortened while a trace is open, the user's own choice is kept."""
    wait, tries = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    one, two = (MLflowExporter(tracking_uri="http://127.0.0.1:1", timeout=8) for _ in range(2))
    one.open(info())
    assert (os.environ[wait], os.environ[tries]) == ("4", "0")
    two.open(info())
    one.close()
    assert (os.environ[wait], os.environ[tries]) == ("4", "0")
    two.close()
    assert wait not in os.environ and tries not in os.environ
    two.close()

    monkeypatch.setenv(tries, "5")
    one.open(info())
    assert (os.environ[wait], os.environ[tries]) == ("4", "5")
    one.close()
    assert wait not in os.environ and os.environ[tries] == "5"


def test_a_dead_server_fails_at_once() -> None:
    """Opening asks no server; an export to a dead one fails in a moment, closing sends nothing."""
    exporter = MLflowExporter(tracking_uri=f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    exporter.open(info())
    with pytest.raises(Exception, match="Connection refused"):
        exporter.export([record(0)])
    exporter.close()
    assert time.monotonic() - started < 3.0


def test_closing_takes_no_longer_than_its_timeout(
    server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that falls silent at the end is left to itself, with a warning."""
    silent: list[bool] = []
    released = threading.Event()

    def stall(line: str) -> None:
        if silent:
            released.wait(30)

    with LossyProxy(server.port, before=stall) as proxy:
        exporter = MLflowExporter(tracking_uri=proxy.url, timeout=2.0)
        exporter.open(info())
        exporter.export([record(0)])
        silent.append(True)
        started = time.monotonic()
        with caplog.at_level(logging.WARNING, "gradtrace"):
            exporter.close()
        assert time.monotonic() - started < 3.0
        released.set()
    assert "could not send all of the end" in caplog.text


def test_what_fails_at_the_end_holds_up_nothing_else(
    server: MlflowServer,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where no figure can be drawn the run still ends, with all else."""
    (tmp_path / "events.jsonl").write_text("{}\n")
    exporter = MLflowExporter(tracking_uri=server.url)
    exporter.open(info(path=tmp_path))
    exporter.export([record(0), record(1)])

    def fail(path: Path) -> bool:
        raise RuntimeError("no figure")

    monkeypatch.setattr(exporter._curves, "draw", fail)
    with caplog.at_level(logging.WARNING, "gradtrace"):
        exporter.close()
    run = client.get_run(exporter.run_id)
    assert run.info.status == "FINISHED"
    for key in ("spikes", "spike_share", "clip/fraction_overall"):
        assert set(history(client, exporter.run_id, f"gradtrace/{key}")) >= {2}, key
    assert run.data.tags["gradtrace.status"] == "closed"
    assert client.list_artifacts(exporter.run_id, "gradtrace")[0].path == "gradtrace/events.jsonl"
    [told] = [r.getMessage() for r in caplog.records if r.name == "gradtrace"]
    assert "it lacks files: RuntimeError: no figure" in told


def test_a_file_store_takes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that keeps a file for each key has all values, parameters and the whole summary."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    records = rich_records(120)
    exporter = MLflowExporter(uri)
    exporter.open(info(config={"a": 1, "a/b": 2, "c": {"d/e": 3}}))
    exporter.export(records[:50])
    exporter.export(records[50:])
    with caplog.at_level(logging.WARNING, "gradtrace"):
        exporter.close()
    assert caplog.text == ""
    there: Any = MlflowClient(uri)
    run = there.get_run(exporter.run_id)
    assert sorted(run.data.params.values()) == ["1", "2", "3"]

    values, totals = StepValues(info(), layers=5), RunTotals()
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


def test_a_run_that_an_exception_ended_has_failed(
    server: MlflowServer, client: Any, tmp_path: Path
) -> None:
    """MLflow's run is FAILED, whether it was there or the run is sent later."""

    def fail(trace: object, step: int) -> None:
        raise KeyError(step)

    there = MLflowExporter(tracking_uri=server.url)
    for exporters in ([there], []):
        name = f"with {len(exporters)}"
        with pytest.raises(KeyError):
            train(dataset(), tmp_path, run=name, epochs=1, during=fail, exporters=exporters)
    send(tmp_path / "with 0", later := MLflowExporter(tracking_uri=server.url))
    for exporter in (there, later):
        run = client.get_run(exporter.run_id)
        assert run.info.status == "FAILED"
        assert run.data.tags["gradtrace.status"] == "ended by KeyError"


def test_two_of_them_keep_apart(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    """Each has a run of its own, also on one server, and is continued there when sent later."""
    two = [MLflowExporter(tracking_uri=server.url) for _ in range(2)]
    _, trace = train(dataset(), tmp_path, epochs=1, exporters=two)
    assert trace.path is not None and two[0].run_id != two[1].run_id
    for exporter in two:
        assert_complete(client, exporter.run_id, trace.path)
    for name, before in zip(("mlflow", "mlflow-2"), two, strict=True):
        again = MLflowExporter(tracking_uri=server.url)
        deliver(Backlog(trace.path), info_of(trace.path), again, name=name, again=True)
        assert again.run_id == before.run_id
        assert_complete(client, again.run_id, trace.path)


def test_a_run_that_was_killed_says_so(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    """Sent after its process has vanished, MLflow's run is KILLED; of a live one it is FINISHED."""
    _, trace = train(dataset(), tmp_path, epochs=1)
    assert trace.path is not None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    told = {}
    for pid in (gone.pid, os.getpid()):
        state = json.loads((trace.path / "run.json").read_text()) | {
            "status": "running",
            "pid": pid,
        }
        (trace.path / "run.json").write_text(json.dumps(state))
        send(trace.path, exporter := MLflowExporter(tracking_uri=server.url), again=True)
        run = client.get_run(exporter.run_id)
        told[pid] = run.info.status, run.data.tags["gradtrace.status"]
        (trace.path / "mlflow.json").unlink()
        client.delete_run(exporter.run_id)
    assert told == {gone.pid: ("KILLED", "killed"), os.getpid(): ("FINISHED", "closed")}


def test_passwords_stay_out_of_the_log(
    server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    """When the end cannot be sent, the warning shows the address without user and password."""
    dead: list[bool] = []
    with LossyProxy(server.port, lose=lambda line: bool(dead)) as proxy:
        uri = proxy.url.replace("://", "://me:secret@")
        exporter = MLflowExporter(tracking_uri=uri)
        exporter.open(info())
        exporter.export([record(0)])
        dead.append(True)
        with caplog.at_level(logging.WARNING, "gradtrace"):
            exporter.close()
    [told] = [r.getMessage() for r in caplog.records if r.name == "gradtrace"]
    assert "could not send all of the end" in told and "://***@127.0.0.1" in told
    assert "secret" not in told


def test_no_steps_make_no_run(server: MlflowServer, client: Any) -> None:
    """A trace that ends before its first step leaves nothing in MLflow."""
    before = len(client.search_runs(["0"]))
    exporter = MLflowExporter(tracking_uri=server.url)
    exporter.open(info())
    exporter.export([])
    exporter.close()
    assert exporter.run_id is None and len(client.search_runs(["0"])) == before


def test_parameters_are_flat_texts() -> None:
    """Nested mappings are joined with dots; same keys stay apart; odd values do no harm."""

    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    params = flat_params({"a": {"b": 1}, "a.b": 2, "c": {}, "d": None, "e": Odd(), "f": "\ud800\0"})
    assert params["a.b"] == "1" and sorted(params.values()) == [
        "1",
        "2",
        "?",
        "None",
        "a Odd",
        "{}",
    ]
    endless: dict[str, Any] = {}
    endless["self"] = endless
    assert len(flat_params(endless)) == 1


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'pip install "gradtrace[mlflow]"' in done.stdout
