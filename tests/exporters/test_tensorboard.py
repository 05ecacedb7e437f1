"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import errno
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_python import run_python
from spike_records import record
from spiking import dataset, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from gradtrace import Sampling, Spike, load_run
from gradtrace.exporters import TensorBoardExporter
from gradtrace.pipeline.send import deliver
from gradtrace.records import BatchRef, RunInfo, StepRecord
from gradtrace.runlog.backlog import Backlog
from gradtrace.testing import MemoryBacklog


def info(name: str = "run", **fields: Any) -> RunInfo:
    return RunInfo(name=name, started=1000.0, **fields)


def read(folder: Path) -> Any:
    found: Any = EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("scalars", "tensors", "histograms"), 0)
    )
    found.Reload()
    return found


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """Values by step; fails when a step is there twice."""
    events = read(folder).Scalars(f"gradtrace/{tag}")
    values = {event.step: event.value for event in events}
    assert len(values) == len(events), "a step is there twice"
    return values


def texts(folder: Path, tag: str) -> dict[int, str]:
    return {
        event.step: event.tensor_proto.string_val[0].decode()
        for event in read(folder).Tensors(f"gradtrace/{tag}")
    }


def spike(step: int, message: str = "loss is high") -> Spike:
    return Spike(
        step=step,
        time=5.0,
        severity="warning",
        message=message,
        signal="loss",
        value=9.0,
        baseline=1.0,
        ratio=9.0,
        score=2.0,
        blamed=(BatchRef(0, 1, 1, ("a`b", 7)),),
    )


def test_every_step_is_there_and_equal_to_the_run_log(tmp_path: Path) -> None:
    """After a real training each step has its values, spikes and parameters are texts."""
    board = tmp_path / "board"
    exporter = TensorBoardExporter(board)
    config = {"lr": 1e-3, "model": {"width": 8}}
    _, trace = train(dataset(3, 77, 200), tmp_path, config=config, exporters=[exporter])
    assert trace.notes == [] and trace.path is not None and trace.spikes
    rows = load_run(trace.path).steps.to_pylist()
    for tag, column in (
        ("loss", "loss"),
        ("grad_norm", "grad_norm"),
        ("clip/coefficient", "clip_coefficient"),
        ("step", "step"),
    ):
        expected = {row["step"]: float(np.float32(row[column])) for row in rows}
        assert scalars(board, tag) == expected
    [first, *_] = read(board).Scalars("gradtrace/loss")
    assert first.wall_time == rows[0]["time"]
    norms = load_run(trace.path).gradients.to_pandas()
    norms = norms[norms.layer == "0.weight"].set_index("step")["norm"]
    assert scalars(board, "layers/0.weight/grad_norm") == norms.astype("float32").to_dict()
    assert scalars(board, "spikes")[99] == sum(s.step < 99 for s in trace.spikes)
    assert scalars(board, "grad_norm_p95").keys() == {100}
    told = texts(board, "events/spike")
    assert set(told) == {s.step for s in trace.spikes}
    assert trace.spikes[-1].message.splitlines()[0] in told[trace.spikes[-1].step]
    assert "| `model.width` | `8` |" in texts(board, "config")[0]


@pytest.mark.parametrize("later", [False, True])
def test_histograms_arrive_where_they_were_sampled(tmp_path: Path, later: bool) -> None:
    """Sampled steps hold each layer's counts, those of the run log, sent at once or afterwards."""
    exporter = TensorBoardExporter(tmp_path / "board", layers=["2.*"])
    sampling = Sampling(histograms=20, first=0, burst=0)
    data, exporters = dataset(), [] if later else [exporter]
    _, trace = train(data, tmp_path, epochs=1, sampling=sampling, exporters=exporters)
    assert trace.path is not None
    if later:
        deliver(Backlog(trace.path), info(path=trace.path), exporter)
    accumulator = read(tmp_path / "board")
    for name in ("2.weight", "2.bias"):
        events = accumulator.Histograms(f"gradtrace/layers/{name}/gradients")
        found = {event.step: event.histogram_value for event in events}
        truth = {
            r.step: r.histograms[name]
            for r in load_run(trace.path).records()
            if isinstance(r, StepRecord) and r.histograms is not None
        }
        assert list(found) == list(truth) == [0, 20, 40]
        for step, (counts, edges) in truth.items():
            one = found[step]
            assert one.num == sum(one.bucket) == (8 if name == "2.weight" else 1)
            assert one.max == one.bucket_limit[-1]
            lows = [one.min, *one.bucket_limit[:-1]]
            for low, high, count in zip(lows, one.bucket_limit, one.bucket, strict=True):
                assert count == counts[(edges[:-1] >= low) & (edges[1:] <= high)].sum()


def test_nan_and_inf_arrive(tmp_path: Path) -> None:
    """NaN and Inf are values of loss and norm; what was not measured is no value."""
    exporter = TensorBoardExporter(tmp_path)
    exporter.open(info())
    exporter.export([record(0, loss=math.nan, norm=math.inf), record(1, layers=[math.nan, 1, 1])])
    exporter.close()
    assert (
        math.isnan(scalars(tmp_path, "loss")[0]) and scalars(tmp_path, "grad_norm")[0] == math.inf
    )
    assert scalars(tmp_path, "layers/embed.weight/grad_norm").keys() == {0}


def test_odd_names_arrive(tmp_path: Path) -> None:
    """Quotes, newlines, slashes, emoji, 500 characters in names, messages and configurations."""
    odd = ["a'b\"c", "a\nb", "a\tb", "/x//../y/", "..", "\N{FIRE}", "n" * 500, "n" * 501, "\ud800"]
    exporter = TensorBoardExporter(tmp_path)
    exporter.open(info("a\n\N{FIRE}", config={name: name for name in odd}))
    exporter.export([record(0, logged={name: float(at) for at, name in enumerate(odd)})])
    exporter.export([spike(0, "\ud800 <b>`\N{FIRE}`</b>")])
    exporter.close()
    tags = [t for t in read(tmp_path).Tags()["scalars"] if t.startswith("gradtrace/logged/")]
    assert sorted(scalars(tmp_path, tag.removeprefix("gradtrace/"))[0] for tag in tags) == list(
        range(len(odd))
    )
    [told] = texts(tmp_path, "events/spike").values()
    assert told == '    \\ud800 <b>`\N{FIRE}`</b>\n    samples: ["a`b", 7]'
    assert "`" * 2 not in texts(tmp_path, "config")[0]


def test_without_a_directory_it_is_in_the_run_directory(tmp_path: Path) -> None:
    """By its name alone it writes below the run; a trace that keeps no run is refused."""
    _, trace = train(dataset(), tmp_path, epochs=1, exporters=["tensorboard"])
    assert trace.notes == [] and trace.path is not None
    assert len(scalars(trace.path / "tensorboard", "loss")) == 50
    with pytest.raises(ValueError, match=r"TensorBoardExporter\(directory\)"):
        train(dataset(), None, epochs=1, exporters=["tensorboard"])


def test_ranks_have_folders(tmp_path: Path) -> None:
    """Rank 0 writes to the directory itself, others below it."""
    for rank in (0, 2):
        exporter = TensorBoardExporter(tmp_path)
        exporter.open(info(rank=rank, world_size=3))
        exporter.export([record(rank)])
        exporter.close()
    assert scalars(tmp_path, "step").keys() == {0}
    assert scalars(tmp_path / "rank2", "step").keys() == {2}


class Refusing:
    """A file on a disk that becomes full in the middle of a write."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.full = False

    def write(self, data: memoryview) -> int:
        if self.full and len(data) > 10:
            return int(self._file.write(data[:10]))
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        return int(self._file.write(data[: len(data) // 2 + 1]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_costs_nothing(tmp_path: Path) -> None:
    """A write that fails half-way is undone, so what follows can be read; no step is twice."""
    exporter = TensorBoardExporter(tmp_path)
    exporter.open(info())
    disk = exporter._file = Refusing(exporter._file)  # type: ignore[assignment]
    exporter.export([record(0)])
    disk.full = True
    batch = [record(1), record(2)]
    # Short writes go on until the disk takes nothing any more.
    disk._file = Limited(disk._file, 3)
    for _ in range(3):
        with pytest.raises(OSError, match="no space"):
            exporter.export(batch)
    disk.full = False
    disk._file = disk._file._file
    exporter.export(batch)
    exporter.export([record(3)])
    exporter.close()
    assert scalars(tmp_path, "loss").keys() == {0, 1, 2, 3}
    assert scalars(tmp_path, "step")[3] == 3


class Limited(Refusing):
    """Takes so many writes, then none."""

    def __init__(self, file: Any, writes: int) -> None:
        super().__init__(file)
        self.left = writes

    def write(self, data: memoryview) -> int:
        if self.left == 0:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.left -= 1
        return int(self._file.write(data))


def test_what_is_sent_later_takes_the_place_of_the_same_steps(tmp_path: Path) -> None:
    """Sending a run again, as after a crash before the cursor was stored, doubles nothing."""
    backlog = MemoryBacklog()
    backlog.append([record(step) for step in range(10)])
    backlog.flush()
    run = info(path=tmp_path / "run")
    (tmp_path / "run").mkdir()
    for again in (False, True):
        deliver(backlog, run, TensorBoardExporter(tmp_path / "board"), again=again)
    assert scalars(tmp_path / "board", "loss").keys() == set(range(10))


def test_runs_in_one_directory_stay_apart(tmp_path: Path) -> None:
    """A second run goes into a folder of its own name, and hides nothing of the first."""
    for name, steps in (("first", 10), ("second/run", 4), ("third", 5)):
        exporter = TensorBoardExporter(tmp_path)
        exporter.open(info(name))
        exporter.export([record(step) for step in range(steps)])
        exporter.close()
    assert scalars(tmp_path, "loss").keys() == set(range(10))
    assert scalars(tmp_path / "second_run", "loss").keys() == set(range(4))
    assert scalars(tmp_path / "third", "loss").keys() == set(range(5))


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_the_users_own_scalars_stay(tmp_path: Path, first: str) -> None:
    """A SummaryWriter's scalars in the same folder are all there, also when a run is sent again."""

    def write() -> None:
        with SummaryWriter(str(tmp_path)) as writer:
            for step in range(5):
                writer.add_scalar("theirs", step, step)

    def send() -> TensorBoardExporter:
        exporter = TensorBoardExporter(tmp_path)
        exporter.open(info(config={"lr": 1}))
        exporter.export([record(step) for step in range(3)])
        exporter.close()
        return exporter

    if first == "theirs":
        write()
    before = send()
    if first == "ours":
        write()
    for last in (send(), send()):
        assert last.path is not None and last.path.parent == tmp_path / "gradtrace"
        assert [event.step for event in read(tmp_path).Scalars("theirs")] == [0, 1, 2, 3, 4]
        assert scalars(last.path.parent, "loss").keys() == {0, 1, 2}
    assert before.path is not None
    assert before.path.parent == (tmp_path / "gradtrace" if first == "theirs" else tmp_path)
    assert scalars(before.path.parent, "loss").keys() == {0, 1, 2}


def test_a_first_file_restarts_nothing(tmp_path: Path) -> None:
    """TensorBoard is told of a restart only where an earlier file of gradtrace's is continued."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for restarts in ([], [4]):
        exporter = TensorBoardExporter(tmp_path)
        exporter.open(info())
        exporter.export([record(4), record(5)])
        exporter.close()
        events = list(EventFileLoader(str(exporter.path)).Load())
        assert [event.step for event in events if event.HasField("session_log")] == restarts


def test_what_was_sent_before_is_counted(tmp_path: Path) -> None:
    """`remember` brings counts up to date without writing."""
    exporter = TensorBoardExporter(tmp_path)
    exporter.open(info())
    exporter.remember([record(0), spike(0)])
    exporter.export([record(1)])
    exporter.close()
    assert scalars(tmp_path, "spikes") == {1: 1.0, 2: 1.0}


def test_a_killed_runs_summary_is_sent_later(tmp_path: Path) -> None:
    """Where all steps were written, and the end was not, the summary is what is sent."""
    exporter = TensorBoardExporter(tmp_path)
    exporter.open(info())
    exporter.remember([record(step) for step in range(5)])
    exporter.close()
    assert scalars(tmp_path, "grad_norm_p95").keys() == {5}


def test_a_run_without_steps_is_an_empty_file(tmp_path: Path) -> None:
    """A trace that ends before its first step leaves a file that can be read."""
    exporter = TensorBoardExporter(tmp_path)
    exporter.open(info())
    exporter.close()
    exporter.close()
    assert read(tmp_path).Tags()["scalars"] == []


def test_one_event_a_step(tmp_path: Path) -> None:
    """All values of a step are one event, which costs a fifth of one by one."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    exporter = TensorBoardExporter(tmp_path)
    exporter.open(info())
    exporter.export([record(step) for step in range(5)])
    exporter.close()
    events = list(EventFileLoader(str(exporter.path)).Load())
    assert [event.step for event in events if event.HasField("summary")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_tensorflows(data: bytes, crc: int) -> None:
    """The vectors of RFC 3720, masked as TensorBoard's own reader has them."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c, masked_crc32c

    assert crc32c(data) == crc
    assert TensorBoardExporter()._checksum(data) == struct.pack("<I", masked_crc32c(data))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the checksums is asked for in the constructor, as TensorBoard is, by one pip line."""
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ImportError, match=r'google_crc32c.*pip install "gradtrace\[tensorboard\]"'):
        TensorBoardExporter("x")


@pytest.mark.parametrize("options", [{"directory": ""}, {"directory": 3}, {"layers": -1}])
def test_settings_are_checked_where_they_are_given(options: dict[str, Any]) -> None:
    """The constructor refuses what is wrong, by its name."""
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        TensorBoardExporter(**{"directory": "x"} | options)


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    """Entering the trace raises, before the loop."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        TensorBoardExporter(tmp_path / "file").open(info())


def test_the_package_is_loaded_by_the_constructor_only() -> None:
    """Importing the module loads no tensorboard, and nothing ever loads TensorFlow."""
    code = (
        "import sys\n"
        "from gradtrace.exporters.tensorboard import TensorBoardExporter\n"
        "assert 'tensorboard' not in sys.modules\n"
        "TensorBoardExporter('x')\n"
        "assert 'tensorflow' not in sys.modules\n"
        "del sys.modules['tensorboard.compat.proto.event_pb2']\n"
        "sys.modules['tensorboard.compat.proto.event_pb2'] = None\n"
        "try: TensorBoardExporter('x')\n"
        "except ImportError as error: print(error)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert 'pip install "gradtrace[tensorboard]"' in done.stdout
