"""A run directory, read."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_runs import new_log, note, numbers, record, skipped, write

from gradtrace.records import TABLE_COLUMNS, Record
from gradtrace.runlog.reader import load_run


def test_tables_have_the_contract_columns_even_when_empty(tmp_path: Path) -> None:
    """A run without records has empty tables of the right columns."""
    run = load_run(new_log(tmp_path).path)
    assert run.steps.num_rows == 0
    for table, columns in TABLE_COLUMNS.items():
        assert getattr(run, table).schema.names == ["step", "layer", *columns]
        assert getattr(run, table).num_rows == 0
    assert list(run.records()) == run.events == []


def test_layer_names_are_plain_strings_in_pandas(tmp_path: Path) -> None:
    """`.to_pandas()` gives a column of text, across batches whose dictionaries differ."""
    pytest.importorskip("pandas")
    log = new_log(tmp_path)
    write(log, 0, 1, 2)
    frame = load_run(log.path).gradients.to_pandas()
    assert frame["layer"].tolist() == ["layer0", "layer0", "layer1", "layer0", "layer1", "layer2"]
    assert frame["layer"].map(type).eq(str).all()
    assert frame["norm"].tolist() == [0, 1, 1, 2, 2, 2]


def test_records_are_in_order_and_start_where_asked(tmp_path: Path) -> None:
    """Steps come before events of the same step; both can be left out up to a point."""
    log = new_log(tmp_path, segment_bytes=6000)
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


def test_events_cut_anywhere_give_the_complete_lines(tmp_path: Path) -> None:
    """At every length of `events.jsonl`, the lines that are complete are read."""
    log = new_log(tmp_path)
    log.append([skipped(1), note(2), skipped(3)])
    path = log.path / "events.jsonl"
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert len(load_run(log.path).events) == whole[:size].count(b"\n")


def test_a_torn_line_in_the_middle_hides_no_event(tmp_path: Path) -> None:
    """Foreign and torn lines among the events are passed over."""
    log = new_log(tmp_path)
    log.append([skipped(1)])
    with (log.path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind":"skipped_st\n\n\xff\xfe\n[1]\n{"kind":"from_the_future","step":3}\n')
    log.append([skipped(2)])
    assert load_run(log.path).events == [skipped(1), skipped(2)]


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    """Pickles as files, as Arrow extension types or as text are never executed."""
    log = new_log(tmp_path)
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


@pytest.mark.parametrize("path", [None, 3, b"run"])
def test_what_is_no_path_is_told(path: Any) -> None:
    """`load_run` says what it got and where a trace has its path."""
    with pytest.raises(TypeError, match=r"expected the path of a run directory.*trace\.path"):
        load_run(path)


def test_info_is_what_run_json_says(tmp_path: Path) -> None:
    """`info` is the parsed file."""
    log = new_log(tmp_path)
    log.update_info({"x": math.nan})
    run = load_run(log.path)
    assert run.info == json.loads((log.path / "run.json").read_text())
    assert run.info["x"] == "NaN"
