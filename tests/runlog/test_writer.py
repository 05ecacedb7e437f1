"""The run log, written."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_runs import Clock, numbers, open_log, record, skipped

from gradtrace.records import (
    ACTIVATION_COLUMNS,
    MOMENT_COLUMNS,
    UPDATE_COLUMNS,
    BatchRef,
    Clip,
    LayerTable,
    NonFinite,
    RunInfo,
    StepRecord,
)
from gradtrace.records.histograms import BINS, LayerHistograms
from gradtrace.runlog import writer
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.reader import load_run
from gradtrace.runlog.segments import SegmentReader, segments
from gradtrace.runlog.writer import RunLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create_run_directory(tmp_path / "runs", "run")


@pytest.mark.parametrize("option", ["max_bytes", "segment_bytes"])
def test_limits_must_be_positive(path: Path, option: str) -> None:
    """A size of zero is refused when the log is made."""
    with pytest.raises(ValueError, match=f"{option}=0.*expected positive"):
        open_log(path, **{option: 0})


def test_records_come_back_equal(path: Path) -> None:
    """Steps with all their tables, batches and NaN cells, and events, are read as appended."""
    gradients = LayerTable(("a", "b"), np.array([[math.nan] * 6, [1.0] * 6]), MOMENT_COLUMNS)
    records = [
        StepRecord(
            step=step,
            time=float(step),
            seconds=0.1 if step else None,
            loss=0.5,
            losses=(0.25, 0.75),
            lr=(0.1, 0.01),
            grad_norm=3.0,
            clip=Clip("norm", 1.0, 3.0, 1.0, 1 / 3, True, 2) if step % 2 else None,
            batches=(BatchRef(0, step, step, (1, "https://x/é", 3)), BatchRef(0, 1, 2)),
            scale=None,
            gradients=gradients,
            weights=gradients if step % 3 else None,
            activations=LayerTable((), np.empty((0, 8)), ACTIVATION_COLUMNS),
            output_gradients=LayerTable((f"new{step}",), np.full((1, 6), -0.0), MOMENT_COLUMNS),
            updates=LayerTable(("b",), np.array([[1.0, math.inf]]), UPDATE_COLUMNS),
            logged={"accuracy": 0.5},
            rank=1,
            overhead=0.001,
        )
        for step in range(20)
    ]
    events = [
        NonFinite(
            step=step, time=0.5, severity="error", message="m\n", count=2, layers={"a": 2},
            first_forward="a", first_backward=None, loss=math.inf, rank=1,
        )
        for step in (3, 19)
    ]  # fmt: skip
    log = open_log(path)
    for item in records[:10]:
        log.append([item])
        log.flush()
    log.append([*records[10:], *events])
    log.close({})
    assert list(load_run(path).records()) == [
        *records[:4], events[0], *records[4:], events[1],
    ]  # fmt: skip


def test_everything_is_readable_while_the_run_goes_on(path: Path) -> None:
    """What was flushed is read while the log stays open, names grow and more is written."""
    log = open_log(path)
    wanted = []
    for step in range(5):
        wanted.append(record(step, tuple(f"layer{i}" for i in range(step + 1))))
        log.append(wanted[-1:])
        log.flush()
        assert list(load_run(path).records()) == wanted
        assert load_run(path).status == "running"


def test_segments_are_plain_arrow_streams(path: Path) -> None:
    """Any Arrow reader opens a finished segment, and sees its end mark."""
    log = open_log(path)
    log.append([record(0, ("a", "b"))])
    log.flush()
    log.append([record(1, ("a", "b", "c"))])
    log.close({})
    file = path / "gradients-000000.arrows"
    read = pa.ipc.open_stream(file.read_bytes()).read_all()
    assert read.column("layer").to_pylist() == ["a", "b", "a", "b", "c"]
    assert file.read_bytes().endswith(b"\xff\xff\xff\xff\0\0\0\0")


def test_steps_are_written_when_time_has_passed(path: Path) -> None:
    """Steps wait for `flush_seconds`, then one batch per table takes them all."""
    clock = Clock()
    log = open_log(path, flush_seconds=2.0, clock=clock)
    log.append([record(0)])
    clock.now += 1.0
    log.append([record(1)])
    assert numbers(path) == []
    clock.now += 1.0
    log.append([record(2)])
    assert numbers(path) == [0, 1, 2]
    stream = pa.ipc.open_stream((path / "steps-000000.arrows").read_bytes())
    assert stream.read_next_batch().num_rows == 3


def test_steps_are_written_when_many_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large rows are written before their time."""
    monkeypatch.setattr(writer, "FLUSH_BYTES", 5000)
    log = open_log(path, flush_seconds=1e9)
    for step in range(20):
        log.append([record(step)])
    assert len(numbers(path)) > 10


@pytest.mark.parametrize("flush_seconds", [0.0, 1e9])
def test_events_are_written_at_once_in_one_write(
    path: Path, monkeypatch: pytest.MonkeyPatch, flush_seconds: float
) -> None:
    """An event is on disk, as one whole line from one write, when `append` returns."""
    log = open_log(path, flush_seconds=flush_seconds)
    real, writes = os.write, []

    def spy(fd: int, data: bytes) -> int:
        writes.append(bytes(data))
        return real(fd, data)

    monkeypatch.setattr(os, "write", spy)
    log.append([record(0), skipped(0), skipped(1)])
    assert load_run(path).events == [skipped(0), skipped(1)]
    lines = [data for data in writes if b'"kind"' in data]
    assert len(lines) == 2
    assert all(data.startswith(b"{") and data.endswith(b"}\n") for data in lines)


def test_segments_rotate_each_on_its_own(path: Path) -> None:
    """A table that reaches the segment size goes on in a new file; nothing is lost between."""
    log = open_log(path, segment_bytes=9000)
    for step in range(12):
        log.append([record(step, tuple(map(str, range(90))))])
        log.flush()
    log.close({})
    assert len(list(path.glob("gradients-*"))) > len(list(path.glob("steps-*"))) > 1
    assert list(load_run(path).records()) == [
        record(step, tuple(map(str, range(90)))) for step in range(12)
    ]


def test_run_json_tells_what_ran(tmp_path: Path) -> None:
    """`run.json` is strict JSON with the run's facts; values JSON cannot express are `repr`."""
    path = create_run_directory(tmp_path, "run")
    info = RunInfo(
        "run", 5.0, path, parameters=[{"name": "w", "shape": (2, 3)}],
        config={"lr": 0.1, "act": len, "nan": math.nan, "where": path},
    )  # fmt: skip
    log = RunLog(path, info)

    def read() -> Any:
        return json.loads((path / "run.json").read_text(), parse_constant=pytest.fail)

    now = read()
    assert (now["format"], now["status"], now["pid"]) == (1, "running", os.getpid())
    assert (now["path"], now["parameters"][0]["shape"]) == (str(path), [2, 3])
    assert now["config"] == {"lr": 0.1, "act": repr(len), "nan": "NaN", "where": str(path)}
    log.update_info({"notes": ["x"]})
    assert read()["notes"] == ["x"]
    log.close({"best": math.inf})
    ended = read()
    assert ended["status"] == "finished"
    assert ended["ended"] >= ended["started"]
    assert ended["summary"] == {"best": "Infinity"}
    assert (ended["lost"], ended["thinned"], ended["notes"]) == (0, [], ["x"])


def test_a_malformed_record_is_alone_in_being_lost(path: Path) -> None:
    """A record or event that cannot be stored is counted and told once; the others stand."""
    told: list[str] = []
    log = open_log(path, on_error=told.append)
    wrong = LayerTable(("a",), np.zeros((2, 6)), MOMENT_COLUMNS)
    log.append([record(0), StepRecord(1, "noon"), StepRecord(2, 1.0, gradients=wrong), record(3)])  # type: ignore[arg-type]
    log.close({})
    assert numbers(path) == [0, 2, 3]
    assert log.lost == 2
    assert len(told) == 1


def test_a_closed_log_counts_what_comes_late(path: Path) -> None:
    """Records after `close` are counted as lost; closing twice does nothing."""
    log = open_log(path)
    log.close({"a": 1})
    log.append([record(0)])
    log.close({"a": 2})
    assert log.lost == 1
    assert load_run(path).info["summary"] == {"a": 1}


def test_segments_are_small_in_memory(path: Path) -> None:
    """What is compressed well is cut into segments all the same, for they are read whole."""
    nothing = LayerHistograms(
        tuple(map(str, range(200))), np.zeros((200, BINS), np.int64), np.ones(200)
    )
    log = open_log(path, segment_bytes=2_000_000)
    for step in range(100):
        log.append([StepRecord(step, float(step), histograms=nothing)])
        log.flush()
    log.close({})
    found = segments(path, "histograms")
    assert len(found) >= 100 * nothing.nbytes // 2_500_000
    for _, file in found:
        rows = SegmentReader(file, "histograms").poll()
        assert rows is not None and rows.nbytes < 3_000_000
    assert [r.step for r in load_run(path).records() if isinstance(r, StepRecord)] == [*range(100)]


def test_a_forked_child_writes_nothing(path: Path) -> None:
    """A child process can do nothing to the log, by calls or by ending."""
    log = open_log(path)
    log.append([record(0), skipped(0)])
    log.flush()
    log.append([record(1)])
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    child = os.fork()
    if child == 0:
        try:
            log.append([record(2), skipped(2)])
            log.flush()
            log.update_info({"x": 1})
            log.close({})
            del log
            sys.exit(0)
        except SystemExit:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    log.close({})
    assert numbers(path) == [0, 1]


CHILD = """
import sys, time, types
from pathlib import Path
import numpy as np
# The package without its __init__, which imports torch: twenty times that would take a minute.
sys.modules["gradtrace"] = package = types.ModuleType("gradtrace")
package.__path__ = [sys.argv[3]]
from gradtrace.records import MOMENT_COLUMNS, LayerTable, RunInfo, SkippedStep, StepRecord
from gradtrace.runlog.writer import RunLog
path, budget = Path(sys.argv[1]), int(sys.argv[2])
log = RunLog(path, RunInfo("run", 0.0, path), max_bytes=budget, segment_bytes=20_000,
             flush_seconds=0.01)
names = tuple(map(str, range(20)))
for step in range(10**9):
    table = LayerTable(names, np.full((20, 6), float(step)), MOMENT_COLUMNS)
    records = [StepRecord(step, time.monotonic(), gradients=table)]
    if step % 50 == 0:
        records.append(SkippedStep(step=step, time=0.0, severity="info", message="", scale=1.0))
    log.append(records)
    print(step, records[0].time, flush=True)
"""


@pytest.mark.slow
def test_kill_9_loses_at_most_what_was_not_flushed_yet(tmp_path: Path) -> None:
    """After SIGKILL at 20 random moments, thinning included, each run is read: every announced
    event is there, and every step but those of the last flush interval.
    """
    rng = random.Random(0)
    package = str(Path(writer.__file__).parent.parent)
    for attempt in range(20):
        path = create_run_directory(tmp_path, f"run{attempt}")
        budget = 10**9 if attempt % 2 else 300_000
        command = [sys.executable, "-c", CHILD, str(path), str(budget), package]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(rng.randrange(1, 4000))]
            child.kill()
            said += child.stdout.read().splitlines(True)
            lines = [line.split() for line in said if line.endswith(b"\n")]
        run = load_run(path)
        assert run.status == "killed"
        last, moment = int(lines[-1][0]), float(lines[-1][1])
        records = list(run.records())
        steps = [item for item in records if isinstance(item, StepRecord)]
        shown = steps[-1].time if steps else float(lines[0][1])
        assert moment - shown < 0.15
        if budget == 10**9:
            assert [item.step for item in steps] == list(range(len(steps)))
            assert all(item.gradients is not None for item in steps)
        announced = set(range(0, last + 1, 50))
        assert announced <= {event.step for event in run.events}


def best(of: Callable[[], None]) -> float:
    times = []
    for _ in range(3):
        start = time.thread_time()
        of()
        times.append(time.thread_time() - start)
    return min(times)


def test_a_step_costs_well_below_a_tenth_of_a_millisecond(tmp_path: Path) -> None:
    """Appending and flushing 1,000 steps of 150 layers, 100 a flush, takes little of the CPU."""
    names = tuple(f"block{i // 6}.layer{i}.weight" for i in range(150))
    records = [record(step, names) for step in range(1000)]
    logs = iter(
        [open_log(create_run_directory(tmp_path, f"run{i}"), flush_seconds=1e9) for i in range(3)]
    )

    def write() -> None:
        log = next(logs)
        for at in range(0, 1000, 100):
            log.append(records[at : at + 100])
            log.flush()

    # Twice the budget: the machine running the tests may be busy with something else.
    assert best(write) / 1000 < 200e-6
