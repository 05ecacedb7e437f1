"""The examples run, and their traces tell what their texts promise."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer, is_missing
from wandb_file import File

from gradtrace import SkippedStep, Trace

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[..., Any] = module.main
    return main


def test_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quickstart names the samples of the step with the largest gradient."""
    trace: Trace = main_of("quickstart")(epochs=2, directory=str(tmp_path))
    steps = trace.steps
    assert len(steps) == 2 * 29
    assert all(step.clip is not None and step.loss is not None for step in steps)
    ids = [id_ for step in steps[:29] for id_ in step.batches[0].sample_ids or ()]
    assert sorted(ids) == list(range(1800))
    hardest = max(steps, key=lambda step: step.grad_norm or 0.0)
    printed = capsys.readouterr().out
    assert f"its samples: {hardest.batches[0].sample_ids}" in printed
    assert str(trace.path) in printed


def test_amp_accumulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a loss scaler and accumulation a step has four losses, and skipped steps are told."""
    trace: Trace = main_of("amp_accumulation")(steps=12, directory=str(tmp_path))
    steps = trace.steps
    assert len(steps) == 12
    assert all(len(step.losses) == 4 for step in steps)
    skipped = [event.step for event in trace.events if isinstance(event, SkippedStep)]
    assert skipped[0] == 0 and len(skipped) < 12
    assert skipped == [step.step for step in steps if step.skipped]
    moved = [step.grad_norm for step in steps if not step.skipped]
    # Scaled norms would be thousands of times larger.
    assert all(norm is not None and 0 < norm < 100 for norm in moved)
    assert f"skipped steps: {skipped}" in capsys.readouterr().out


def test_gan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two models in one trace keep their layers apart by the names in the mapping."""
    trace: Trace = main_of("gan")(steps=5, directory=str(tmp_path))
    names = {name for step in trace.steps if step.gradients for name in step.gradients.names}
    assert {name.split(".")[0] for name in names} == {"generator", "critic"}
    assert len(names) == 8
    assert "critic.0.weight" in capsys.readouterr().out


def test_no_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a torch optimizer `trace.step()` closes the steps, and logged values go with them."""
    trace: Trace = main_of("no_optimizer")(steps=20, directory=str(tmp_path))
    steps = trace.steps
    assert [step.step for step in steps] == list(range(20))
    assert [step.logged["rate"] for step in steps] == [0.1 / (1 + n / 50) for n in range(20)]
    first, last = steps[0].loss, steps[-1].loss
    assert first is not None and last is not None and last < first / 10
    assert "rate at the end" in capsys.readouterr().out


@pytest.mark.slow
def test_llm_spikes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The five corrupted documents are named, no other; without them there is no spike."""
    data, bad, second = main_of("llm_spikes")(epochs=2, directory=str(tmp_path))
    assert {sample.id for sample in bad.samples} == set(data.corrupted)
    assert second.spikes == [] and len(second.steps) > 100
    assert "without them: 0 spikes" in capsys.readouterr().out
    assert list((tmp_path / "spikes").glob("spike-*.json"))


@pytest.mark.slow
@pytest.mark.skipif(is_missing(), reason="the mlflow server is not installed")
def test_compare_mlflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three runs stand side by side in one experiment, each with its rate and every step's loss."""
    from mlflow import MlflowClient

    server = MlflowServer(tmp_path)
    server.start()
    try:
        runs = main_of("compare_mlflow")(server.url, steps=60, directory=str(tmp_path / "runs"))
        client = MlflowClient(server.url)
        found = [client.get_run(id_) for id_ in runs.values()]
        assert len({run.info.run_id for run in found}) == 3
        assert len({run.info.experiment_id for run in found}) == 1
        assert [run.data.params["lr"] for run in found] == ["0.01", "0.1", "1.0"]
        for run in found:
            assert run.info.status == "FINISHED" and "gradtrace/grad_norm_p95" in run.data.metrics
            assert len(client.get_metric_history(run.info.run_id, "gradtrace/loss")) == 60
    finally:
        server.kill()
    assert "lr 0.1: loss" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three offline runs stand in one group, each with its rate and every step's loss."""
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    folders = main_of("compare_wandb")(str(tmp_path), steps=60)
    wandb.teardown()
    assert len(set(folders.values())) == 3
    for rate, folder in folders.items():
        [path] = folder.glob("*.wandb")
        file = File(path)
        assert file.run["run_group"] == "learning rates" and file.config["lr"] == rate
        assert sorted(file.steps) == list(range(60))
        assert "gradtrace/grad_norm_p95" in file.summary


def test_watch_with_prometheus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The broken digits spike, and what Prometheus, Alertmanager and Grafana need is written."""
    pytest.importorskip("sklearn")
    trace: Trace = main_of("watch_with_prometheus")(
        seconds=0.0,
        epochs=6,
        port=0,
        directory=str(tmp_path / "runs"),
        monitoring=str(tmp_path),
        pause=0.0,
    )
    told = capsys.readouterr().out
    assert "the metrics are at http://" in told
    broken = {7, 700, 1234}
    named = [
        broken & {id_ for batch in spike.blamed for id_ in batch.sample_ids or ()}
        for spike in trace.spikes
    ]
    # A network that broken scans have thrown about may spike on others, too.
    assert sum(map(bool, named)) > 0.5 * len(named)
    for spike in trace.spikes:
        indices = ", ".join(str(batch.batch_index) for batch in spike.blamed) or "none"
        assert f"step {spike.step}, batch index {indices}: " in told
    for file in ("docker-compose.yml", "prometheus.yml", "gradtrace.rules.yml"):
        assert (tmp_path / file).exists()


def test_every_example_is_tested() -> None:
    """No example goes without a test of its name."""
    for path in EXAMPLES.glob("*.py"):
        assert f"test_{path.stem}" in globals(), path.name
