"""Runs as OpenMetrics files, imported into a real Prometheus."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest
from patience import patience
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_servers import is_missing, prometheus
from spike_records import record
from spiking import dataset, train

from gradtrace import load_run
from gradtrace.exporters import OpenMetricsExporter
from gradtrace.pipeline.send import deliver
from gradtrace.records import RunInfo, Spike, StepRecord
from gradtrace.runlog.backlog import Backlog


def info(name: str = "run") -> RunInfo:
    return RunInfo(name=name, started=1.0)


def parsed(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Times and values by metric and first own label, as the official parser sees them."""
    parse: Any = text_string_to_metric_families
    found: dict[str, list[tuple[float, float]]] = {}
    for family in parse(path.read_text()):
        for sample in family.samples:
            own = [v for k, v in sample.labels.items() if k not in ("run", "rank")]
            key = " ".join([sample.name, *own])
            found.setdefault(key, []).append((float(sample.timestamp), sample.value))
    return found


@pytest.mark.skipif(
    is_missing("prometheus", "promtool"), reason="Debian's package prometheus is not installed"
)
def test_a_run_is_imported_by_prometheus(tmp_path: Path) -> None:
    """After promtool's import the server has every value of the run log at its time."""
    _, trace = train(dataset(3, 77, 200), tmp_path, run='a "run"\n')
    assert trace.path is not None and trace.spikes
    run, file = load_run(trace.path), tmp_path / "metrics.txt"
    rows = run.steps.to_pylist()
    deliver(Backlog(trace.path), info('a "run"\n'), OpenMetricsExporter(file))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics"]
    command += [str(file), str(tmp_path / "data")]
    subprocess.run(command, check=True, capture_output=True, timeout=patience(60))
    last = rows[-1]["time"] + 1
    with prometheus(tmp_path, "scrape_configs: []\n") as server:
        window = f"[{int(last - rows[0]['time']) + 60}s]"

        def samples(series: str) -> dict[float, float]:
            [found] = server.query(series + window, time=last)
            assert found["metric"]["run"] == 'a "run"\n'
            return {when: float(value) for when, value in found["values"]}

        for name, column in (("loss", "loss"), ("grad_norm", "grad_norm")):
            # Steps within a millisecond are one sample: the last of them.
            assert samples(f"gradtrace_{name}") == {
                round(row["time"], 3): row[column] for row in rows
            }
        norms = [row for row in run.gradients.to_pylist() if row["layer"] == "0.weight"]
        when = {row["step"]: round(row["time"], 3) for row in rows}
        assert samples('gradtrace_layer_grad_norm{layer="0.weight"}') == {
            when[row["step"]]: row["norm"] for row in norms
        }
        spikes = samples('gradtrace_spikes_total{signal="loss"}')
        told = sum(isinstance(e, Spike) and e.signal == "loss" for e in trace.spikes)
        assert min(spikes.values()) == 0 and spikes[max(spikes)] == told > 0


def test_steps_within_a_millisecond_are_one_sample(tmp_path: Path) -> None:
    """Times only rise; of steps in the same millisecond the last one's values are kept."""
    exporter = OpenMetricsExporter(tmp_path / "f")
    exporter.open(info())
    times = [1.0, 1.0001, 1.0002, 1.002, 1.0021, 0.5, 1.003]
    exporter.export(
        [StepRecord(step=step, time=t, loss=float(step)) for step, t in enumerate(times)]
    )
    exporter.close()
    assert parsed(tmp_path / "f")["gradtrace_loss"] == [(1.0, 2.0), (1.002, 5.0), (1.003, 6.0)]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into memory waits in files, and nothing of it is lost or out of order."""
    files: list[bytes] = []
    for buffered in (7, 1_000_000):
        monkeypatch.setattr("gradtrace.exporters.openmetrics.BUFFERED", buffered)
        exporter = OpenMetricsExporter(tmp_path / "f")
        exporter.open(info())
        for step in range(50):
            exporter.export([record(step)])
            kept = [len(s.lines) for of in exporter._series.values() for s in of.values()]
            assert buffered > 7 or sum(kept) == 0
        exporter.close()
        files.append((tmp_path / "f").read_bytes())
    assert files[0] == files[1]
    assert [value for _, value in parsed(tmp_path / "f")["gradtrace_steps_total"]] == list(
        range(1, 51)
    )


def test_a_spike_counts_at_its_own_step(tmp_path: Path) -> None:
    """The event that follows a step is in that step's counts."""
    exporter = OpenMetricsExporter(tmp_path / "f")
    exporter.open(info())
    spike = Spike(
        step=1,
        time=1.0,
        severity="warning",
        message="",
        signal="loss",
        value=9.0,
        baseline=1.0,
        ratio=9.0,
        score=2.0,
    )
    exporter.export([record(0), record(1), spike, record(2)])
    exporter.close()
    assert parsed(tmp_path / "f")["gradtrace_spikes_total loss"] == [(0.0, 0), (1.0, 1), (2.0, 1)]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full there is no half of a file, and no temporary one is left."""
    (tmp_path / "f").write_text("old")
    exporter = OpenMetricsExporter(tmp_path / "f")
    exporter.open(info())

    def full(milliseconds: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(exporter, "_write", full)
    with pytest.raises(OSError, match="no space"):
        exporter.export([record(0), record(1)])
    monkeypatch.undo()
    with pytest.raises(OSError, match="anew"):
        exporter.export([record(0), record(1)])
    exporter.close()
    exporter.close()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_it_is_told_to_want_the_whole_run() -> None:
    """There is no cursor for a file that is made anew each time: the attribute says so."""
    assert OpenMetricsExporter("f").whole is True


def test_a_run_without_steps_is_a_valid_file(tmp_path: Path) -> None:
    """An empty run makes an empty file that importers take."""
    exporter = OpenMetricsExporter(tmp_path / "f")
    exporter.open(info())
    exporter.close()
    assert (tmp_path / "f").read_text() == "# EOF\n"


@pytest.mark.parametrize("options", [{"file": ""}, {"file": 3}, {"layers": -1}, {"max_series": 0}])
def test_settings_are_checked_where_they_are_given(options: dict[str, Any]) -> None:
    """The constructor refuses what is wrong, by its name."""
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        OpenMetricsExporter(**{"file": "x"} | options)
