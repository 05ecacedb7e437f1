"""A run that an older version wrote, in which output gradients were called signals, is read.

The numbers below were printed by the version that wrote it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gradtrace import Spike, StepRecord, load_run
from gradtrace.detect.spikes.detector import latest_spikes
from gradtrace.pipeline.position import Cursor, Position
from gradtrace.pipeline.send import deliver
from gradtrace.records import HISTOGRAMS, LAYER_TABLES, TABLE_COLUMNS, RunInfo
from gradtrace.runlog.backlog import Backlog
from gradtrace.testing import RecordingExporter

STORED = Path(__file__).parents[1] / "data" / "before-the-move"
ROWS = {
    "gradients": 320,
    "weights": 20,
    "activations": 15,
    "output_gradients": 15,
    "updates": 20,
    "histograms": 12,
}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A copy, since deliveries write their cursors."""
    return Path(shutil.copytree(STORED, tmp_path / "run"))


def test_every_table_is_read() -> None:
    """All steps and all rows of each layer table, under the names of today."""
    run = load_run(STORED)
    assert not list(STORED.glob("output_gradients-*")) and list(STORED.glob("signals-*"))
    assert run.steps.column("step").to_pylist() == list(range(80))
    assert {table: getattr(run, table).num_rows for table in LAYER_TABLES} == ROWS


def test_output_gradients_are_the_table_called_signals() -> None:
    """Cells of the renamed table are what the older version stored."""
    table = load_run(STORED).output_gradients
    rows = {(row["step"], row["layer"]): row for row in table.to_pylist()}
    assert sorted({step for step, _ in rows}) == [0, 1, 20, 40, 60]
    assert rows[0, "0"]["norm"] == 0.09178304821745958
    assert rows[20, "1"]["mean"] == -0.007674052147194743
    assert rows[40, "0"]["zero_fraction"] == 0.609375
    assert rows[60, "2"]["max_abs"] == 0.06236723065376282


def test_steps_come_with_their_tables() -> None:
    """Each record has the tables of its step: none of them stands in the place of another."""
    steps = [record for record in load_run(STORED).records() if isinstance(record, StepRecord)]
    assert [record.step for record in steps] == list(range(80))
    first, plain = steps[0], steps[2]
    assert first.output_gradients is not None and first.updates is not None
    assert first.output_gradients["0", "norm"] == 0.09178304821745958
    assert first.updates["0.weight", "ratio"] == 0.003824496028490781
    assert first.histograms is not None and first.histograms.counts.sum() == 74
    for table in TABLE_COLUMNS:
        count = sum(getattr(record, table) is not None for record in steps)
        assert count == (80 if table == "gradients" else 5), table
    assert plain.output_gradients is None and plain.gradients is not None
    assert sum(getattr(record, HISTOGRAMS) is not None for record in steps) == 3
    assert [batch.ordinal for batch in steps[49].batches] == [98, 99]
    assert steps[49].batches[0].sample_ids == (14, 13, 24, 6)
    assert steps[49].loss == 6.081148654222488 and steps[49].parts == ()


def test_events_are_read() -> None:
    """Fifteen lines: eight spikes, seven of them told again when they ended, and a note."""
    events = load_run(STORED).events
    assert [event.kind for event in events] == ["spike"] * 14 + ["note"]
    spikes = latest_spikes(events)
    assert [(spike.step, spike.signal, spike.duration) for spike in spikes] == [
        (49, "loss", 3),
        (49, "grad_norm", 3),
        (59, "loss", 4),
        (59, "grad_norm", 4),
        (67, "loss", 7),
        (67, "grad_norm", 7),
        (78, "loss", 1),
        (78, "grad_norm", 1),
    ]
    assert spikes[0].batches[0].sample_ids == (14, 13, 24, 6)
    assert spikes[0].layers[0].ratio == 119.1008793626763


def test_the_backlog_reads_it_all_in_order() -> None:
    """Every record once, steps before events of the same step, also from a point within."""
    records, step, event = Backlog(STORED).read_since(0, 0, 1000)
    assert (len(records), step, event) == (95, 80, 15)
    assert records == list(load_run(STORED).records())
    rest, step, event = Backlog(STORED).read_since(60, 8, 1000)
    steps = [record for record in rest if isinstance(record, StepRecord)]
    assert [record.step for record in steps] == list(range(60, 80))
    assert steps[0].output_gradients is not None
    assert steps[0].output_gradients["2", "norm"] == 0.20911296560406775
    assert sum(isinstance(record, Spike) for record in rest) == 6


def test_an_older_cursor_says_what_is_still_owed(stored: Path) -> None:
    """An exporter that had all but the last event gets that one, and everything when asked to."""
    assert Cursor(stored, "recording").load() == Position(80, 14)
    exporter = RecordingExporter()
    info = RunInfo("before-the-move", 0.0, stored)
    deliver(Backlog(stored), info, exporter)
    assert [record.kind for record in exporter.events] == ["note"] and not exporter.steps
    assert Cursor(stored, "recording").load() == Position(80, 15)
    again = RecordingExporter()
    deliver(Backlog(stored), info, again, again=True)
    assert (len(again.steps), len(again.events)) == (80, 15)


def test_the_command_sends_it(stored: Path, tmp_path: Path) -> None:
    """`gradtrace send` delivers the run, its spikes included."""
    target = tmp_path / "metrics.txt"
    command = [sys.executable, "-m", "gradtrace", "send", str(stored)]
    done = subprocess.run(
        [*command, "--to", "openmetrics", str(target)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = target.read_text().splitlines()
    assert sum(line.startswith("gradtrace_loss{") for line in lines) == 80
    assert any("spikes_total" in line and 'signal="loss"' in line for line in lines)
