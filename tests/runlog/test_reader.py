from __future__ import annotations

import json
import math
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gradtrace.records import (
    MOMENT_COLUMNS,
    TABLE_COLUMNS,
    LayerTable,
    Record,
    RunInfo,
    RunNote,
    SkippedStep,
    StepRecord,
)
from gradtrace.runlog import Backlog, RunLog, create_run_directory, list_runs, load_run, segments
from gradtrace.runlog.thinning import Segment, thin_segment


def record(step: int) -> StepRecord:
    names = tuple(f"layer{i}" for i in range(1 + step % 3))
    values = np.full((len(names), 6), float(step))
    return StepRecord(step, float(step), gradients=LayerTable(names, values, MOMENT_COLUMNS))


def skipped(step: int) -> SkippedStep:
    return SkippedStep(step=step, time=0.0, severity="info", message="", scale=1.0)


def note(step: int) -> RunNote:
    return RunNote(step=step, time=0.0, severity="info", message="", source="")


def open_log(tmp_path: Path, **options: Any) -> RunLog:
    path = create_run_directory(tmp_path, "run")
    return RunLog(path, RunInfo("run", 5.0, path), flush_seconds=1e9, **options)


def write(log: RunLog, *steps: int) -> None:
    """Each step in a batch of its own."""
    for step in steps:
        log.append([record(step)])
        log.flush()


def numbers(path: Path) -> list[int]:
    return [item.step for item in load_run(path).records()]


def test_tables_have_the_contract_columns_even_when_empty(tmp_path: Path) -> None:
    """A run without records has empty tables of the right columns."""
    run = load_run(open_log(tmp_path).path)
    assert run.steps.num_rows == 0
    for table, columns in TABLE_COLUMNS.items():
        assert getattr(run, table).schema.names == ["step", "layer", *columns]
        assert getattr(run, table).num_rows == 0
    assert list(run.records()) == run.events == []


def test_layer_names_are_plain_strings_in_pandas(tmp_path: Path) -> None:
    """`.to_pandas()` gives a column of text, across batches whose dictionaries differ."""
    pytest.importorskip("pandas")
    log = open_log(tmp_path)
    write(log, 0, 1, 2)
    frame = load_run(log.path).gradients.to_pandas()
    assert frame["layer"].tolist() == ["layer0", "layer0", "layer1", "layer0", "layer1", "layer2"]
    assert frame["layer"].map(type).eq(str).all()
    assert frame["norm"].tolist() == [0, 1, 1, 2, 2, 2]


def test_records_are_in_order_and_start_where_asked(tmp_path: Path) -> None:
    """Steps come before events of the same step; both can be left out up to a point."""
    log = open_log(tmp_path, segment_bytes=6000)
    log.append([note(0), record(0), record(1), skipped(1), record(2), skipped(3), note(0)])
    write(log, *range(3, 30))
    run = load_run(log.path)
    wanted: list[Record] = [
        record(0), note(0), note(0), record(1), skipped(1), record(2), record(3), skipped(3),
        *map(record, range(4, 30)),
    ]  # fmt: skip
    assert list(run.records()) == wanted
    assert list(run.records(3, 2)) == [note(0), record(3), skipped(3), *map(record, range(4, 30))]
    assert list(run.records(first_step=25, first_event=4)) == [*map(record, range(25, 30))]


def test_a_stream_cut_anywhere_gives_what_was_complete(tmp_path: Path) -> None:
    """At every length of a segment, every complete batch is read and nothing else."""
    log = open_log(tmp_path)
    ends = []
    for step in range(4):
        write(log, step)
        ends.append((log.path / "gradients-000000.arrows").stat().st_size)
    whole = (log.path / "gradients-000000.arrows").read_bytes()
    segment = tmp_path / "gradients-000000.arrows"
    for size in range(len(whole) + 1):
        segment.write_bytes(whole[:size])
        batch = segments.SegmentReader(segment, "gradients").poll()
        complete = sum(end <= size for end in ends)
        rows = [step for step in range(complete) for _ in range(1 + step % 3)]
        assert ([] if batch is None else batch.column("step").to_pylist()) == rows


def test_a_stream_that_grows_by_any_bytes_is_followed(tmp_path: Path) -> None:
    """One reader polling after every few bytes sees each batch once, dictionaries included."""
    log = open_log(tmp_path)
    write(log, *range(6))
    whole = (log.path / "gradients-000000.arrows").read_bytes()
    segment = tmp_path / "gradients-000000.arrows"
    segment.touch()
    follower = segments.SegmentReader(segment, "gradients")
    seen: list[tuple[int, str]] = []
    with segment.open("ab", buffering=0) as file:
        for at in range(0, len(whole), 7):
            file.write(whole[at : at + 7])
            batch = follower.poll()
            if batch is not None:
                columns = batch.column("step").to_pylist(), batch.column("layer").to_pylist()
                seen.extend(zip(*columns, strict=True))
    assert seen == [(step, f"layer{i}") for step in range(6) for i in range(1 + step % 3)]


def test_events_cut_anywhere_give_the_complete_lines(tmp_path: Path) -> None:
    """At every length of `events.jsonl`, the lines that are complete are read."""
    log = open_log(tmp_path)
    log.append([skipped(1), note(2), skipped(3)])
    path = log.path / "events.jsonl"
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert len(load_run(log.path).events) == whole[:size].count(b"\n")


def test_a_torn_line_in_the_middle_hides_no_event(tmp_path: Path) -> None:
    """Foreign and torn lines among the events are passed over."""
    log = open_log(tmp_path)
    log.append([skipped(1)])
    with (log.path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind":"skipped_st\n\n\xff\xfe\n[1]\n{"kind":"from_the_future","step":3}\n')
    log.append([skipped(2)])
    assert load_run(log.path).events == [skipped(1), skipped(2)]


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xf0\xff\xff\x7f", b"x" * 9000]
)
def test_a_damaged_segment_does_not_hide_the_others(tmp_path: Path, damage: bytes) -> None:
    """Empty, half-headed or garbage files in the middle cost only what they held."""
    log = open_log(tmp_path, segment_bytes=1)
    write(log, *range(6))
    log.close({})
    (log.path / "steps-000002.arrows").write_bytes(damage)
    (log.path / "gradients-000004.arrows").write_bytes(damage)
    assert numbers(log.path) == [0, 1, 3, 4, 5]
    assert [item.step for item in load_run(log.path).records(5)] == [5]
    lacking = [r.step for r in load_run(log.path).records() if not getattr(r, "gradients", 1)]
    assert lacking == [4]
    assert set(load_run(log.path).gradients.column("step").to_pylist()) == {0, 1, 2, 3, 5}


@pytest.mark.parametrize("table", ["steps", "gradients"])
def test_a_flipped_byte_anywhere_raises_nothing(tmp_path: Path, table: str) -> None:
    """Wherever a byte of a segment is wrong, reading ends in order, at worst with fewer rows."""
    log = open_log(tmp_path)
    write(log, 0, 1)
    path = log.path / f"{table}-000000.arrows"
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        assert len(list(load_run(log.path).records())) <= 2


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    """Pickles as files, as Arrow extension types or as text are never executed."""
    log = open_log(tmp_path)
    write(log, 0)
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    for name in ("steps-000001.arrows", "weights-000000.arrows", "run.pkl"):
        (log.path / name).write_bytes(bomb)
    field = pa.field(
        "step",
        pa.int64(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": bomb,
        },
    )
    schema = pa.schema([field], metadata={"pandas": bomb, "first_step": bomb})
    with pa.ipc.new_stream(log.path / "updates-000000.arrows", schema) as stream:
        stream.write_batch(pa.record_batch([pa.array([0])], schema=schema))
    with (log.path / "events.jsonl").open("ab") as file:
        file.write(bomb + b"\n")
    run = load_run(log.path)
    assert numbers(log.path) == [0]
    assert (run.updates.num_rows, run.weights.num_rows, run.events) == (1, 0, [])
    assert not (tmp_path / "executed").exists()
    pickle.loads(bomb)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}"])
def test_what_is_no_run_directory_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A folder without a readable `run.json` raises, saying what to give instead."""
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"is no run directory: expected a folder .*; give the"):
        load_run(str(tmp_path))
    with pytest.raises(ValueError, match="is no run directory"):
        load_run(tmp_path / "missing")


def test_runs_are_listed_with_their_state(tmp_path: Path) -> None:
    """The list tells finished, running and killed runs apart and counts their steps."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    states = {"a": "finished", "b": "running", "c": "killed", "d": "running"}
    for at, name in enumerate(states):
        path = create_run_directory(tmp_path, name)
        log = RunLog(path, RunInfo(name, float(at), path))
        log.append([record(3), record(9)])
        log.flush()
        if name == "a":
            log.close({})
        if name == "c":
            log.update_info({"pid": process.pid})
        if name == "d":
            log.update_info({"pid": process.pid, "hostname": "not " + socket.gethostname()})
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").touch()
    runs = list_runs(tmp_path)
    assert [(run.name, run.status, run.started, run.steps) for run in runs] == [
        (name, status, float(at), 10) for at, (name, status) in enumerate(states.items())
    ]
    assert runs[0].path == tmp_path / "a"
    assert list_runs(tmp_path / "missing") == []


def test_damaged_runs_are_listed_as_such(tmp_path: Path) -> None:
    """Where run.json is torn, empty, lost beside steps, or has no start; what is foreign is not."""
    texts = {"torn": '{"form', "empty": "", "lost": None, "startless": '{"format": 1}'}
    for name, text in texts.items():
        path = create_run_directory(tmp_path, name)
        log = RunLog(path, RunInfo(name, 0.0, path))
        log.append([record(3)])
        log.close({})
        (path / "run.json").unlink()
        if text is not None:
            (path / "run.json").write_text(text)
    for name, text in (("list", "[]"), ("other tool", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    runs = list_runs(tmp_path)
    assert {(run.name, run.status, run.steps) for run in runs} == {
        (name, "damaged", 4) for name in texts
    }
    assert all(run.started == run.path.stat().st_mtime for run in runs)


def test_a_run_is_listed_by_its_folder(tmp_path: Path) -> None:
    """A folder that was renamed has the name by which it is found."""
    open_log(tmp_path).close({})
    [run] = list_runs(tmp_path)
    run.path.rename(tmp_path / "renamed")
    assert [one.name for one in list_runs(tmp_path)] == ["renamed"]


@pytest.mark.parametrize("path", [None, 3, b"run"])
def test_what_is_no_path_is_told(path: Any) -> None:
    """`load_run` says what it got and where a trace has its path."""
    with pytest.raises(TypeError, match=r"expected the path of a run directory.*trace\.path"):
        load_run(path)


def test_a_backlog_delivers_everything_once_in_small_parts(tmp_path: Path) -> None:
    """Reading in parts of three gives the same records as reading at once."""
    log = open_log(tmp_path, segment_bytes=6000)
    for step in range(20):
        log.append([record(step), *([skipped(step)] if step % 4 == 0 else [])])
        log.flush()
    log.close({})
    backlog = Backlog(log.path)
    found: list[Record] = []
    step = event = 0
    while True:
        records, step, event = backlog.read_since(step, event, 3)
        assert len(records) <= 3
        if not records:
            break
        found += records
    assert found == list(load_run(log.path).records())
    assert (step, event) == (20, 5)


def test_a_backlog_follows_a_run_that_goes_on(tmp_path: Path) -> None:
    """Each call gives what was flushed since, over rotations and growing names."""
    log = open_log(tmp_path, segment_bytes=6000)
    backlog = Backlog(log.path)
    step = event = 0
    for number in range(15):
        assert backlog.read_since(step, event, 10) == ([], step, event)
        write(log, number)
        records, step, event = backlog.read_since(step, event, 10)
        assert records == [record(number)]


def test_events_wait_for_their_step_but_not_for_ever(tmp_path: Path) -> None:
    """An event is held back until its step is on disk, asked for with `final`, or the run ends;
    a note is not.
    """
    log = open_log(tmp_path)
    backlog = Backlog(log.path)
    log.append([note(5), record(0), skipped(0), skipped(7)])
    assert backlog.read_since(0, 0, 10) == ([note(5)], 0, 1)
    log.flush()
    assert backlog.read_since(0, 1, 10) == ([record(0), skipped(0)], 1, 2)
    assert backlog.read_since(1, 2, 10) == ([], 1, 2)
    assert backlog.read_since(1, 2, 10, final=True) == ([skipped(7)], 1, 3)
    log.close({})
    assert backlog.read_since(1, 2, 10) == ([skipped(7)], 1, 3)


def test_a_backlog_can_be_asked_again_from_an_earlier_point(tmp_path: Path) -> None:
    """A part that was not delivered after all can be read again."""
    log = open_log(tmp_path)
    write(log, 0, 1, 2)
    log.append([skipped(0), skipped(1)])
    backlog = Backlog(log.path)
    first = backlog.read_since(0, 0, 3)
    assert first[1:] == (2, 1)
    assert backlog.read_since(0, 0, 3) == first
    assert backlog.read_since(2, 1, 9)[0] == [skipped(1), record(2)]


@pytest.mark.parametrize("segment_bytes", [1, 10**6])
def test_a_backlog_reads_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    """Segments before the wanted step are not read, and nothing is read twice."""
    log = open_log(tmp_path, segment_bytes=segment_bytes)
    write(log, *range(50))
    total = sum(file.stat().st_size for file in log.path.glob("*.arrows"))
    read = 0
    real = segments.SegmentReader._read

    def count(self: segments.SegmentReader) -> bytes:
        nonlocal read
        data = real(self)
        read += len(data)
        return data

    monkeypatch.setattr(segments.SegmentReader, "_read", count)
    backlog = Backlog(log.path)
    records, step, event = backlog.read_since(45, 0, 100)
    assert [item.step for item in records] == [45, 46, 47, 48, 49]
    assert read < total / 5 or segment_bytes > 1
    read = 0
    write(log, 50)
    records, step, event = backlog.read_since(step, event, 100)
    assert records == [record(50)]
    assert read < total / 20


def test_a_segment_replaced_while_followed_gives_nothing_twice(tmp_path: Path) -> None:
    """Thinning may replace the file a backlog stands in; it goes on with what is left after what
    it has read.
    """
    log = open_log(tmp_path)
    write(log, *range(5))
    backlog = Backlog(log.path)
    assert backlog.read_since(0, 0, 5)[1] == 5
    write(log, *range(5, 21))
    log.close({})
    for table in ("steps", "gradients"):
        segment = Segment(table, log.path / f"{table}-000000.arrows", 0, 20, 10**6)
        assert thin_segment(segment, 10, np.array([], np.int64))
    assert backlog.read_since(5, 0, 9) == ([record(10), record(20)], 21, 0)
    assert backlog.read_since(21, 0, 9) == ([], 21, 0)


def test_info_is_what_run_json_says(tmp_path: Path) -> None:
    """`info` is the parsed file."""
    log = open_log(tmp_path)
    log.update_info({"x": math.nan})
    run = load_run(log.path)
    assert run.info == json.loads((log.path / "run.json").read_text())
    assert run.info["x"] == "NaN"
