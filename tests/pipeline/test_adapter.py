"""The optional hooks of an exporter, and what is done where it has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deliveries import Settling, step

from gradtrace.pipeline.adapter import Adapter
from gradtrace.pipeline.position import Position
from gradtrace.records import Record, RunInfo
from gradtrace.testing import RecordingExporter

RUN = RunInfo(name="run", started=0.0)


class Full(RecordingExporter):
    """Has every hook."""

    known_as = ""
    settling = 2
    whole = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[object] = []

    def open(self, run: RunInfo) -> None:
        self.asked.append(self.known_as)
        super().open(run)

    def remember(self, records: Sequence[Record]) -> None:
        self.asked.append(records)

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        self.asked.append(dropped())

    def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
        return {"SOME_URL": "http://a b", "KIND": "x"}, ["a folder", "-v"]

    def hurry(self) -> None:
        self.asked.append("hurry")


def test_the_verbs_reach_the_exporter() -> None:
    """Open, export and close are the exporter's own."""
    exporter = RecordingExporter()
    adapter = Adapter(exporter)
    adapter.open(RUN)
    adapter.export([step(0)])
    assert exporter.run is RUN and exporter.steps == [step(0)] and not exporter.closed
    adapter.close()
    assert exporter.closed and adapter.name == "recording"


def test_each_hook_is_asked() -> None:
    """An exporter that has them is told its name before `open`, and everything else it wants."""
    exporter = Full()
    adapter = Adapter(exporter, "recording-2")
    adapter.open(RUN)
    adapter.remember([step(0)])
    adapter.watch(lambda: {"recording-2": 3})
    assert adapter.hurry() and adapter.remembers
    assert exporter.asked == ["recording-2", [step(0)], {"recording-2": 3}, "hurry"]
    assert adapter.settling == 2.0 and adapter.whole


def test_an_exporter_without_hooks_is_left_alone() -> None:
    """Nothing is put on it, and asking it for more does nothing."""
    exporter = RecordingExporter()
    before = set(vars(exporter))
    adapter = Adapter(exporter, "recording-3")
    adapter.open(RUN)
    adapter.remember([step(0)])
    adapter.watch(dict)
    assert not adapter.hurry() and not adapter.remembers
    assert adapter.settling == 0.0 and not adapter.whole
    assert set(vars(exporter)) == before and exporter.records == []


def test_the_command_has_the_exporters_settings() -> None:
    """Environment before it and arguments behind it, quoted for a shell; or neither."""
    assert Adapter(Full(), "chosen-2").send_command("runs/my run") == (
        "SOME_URL='http://a b' KIND=x gradtrace send 'runs/my run' --to chosen-2 'a folder' -v"
    )
    assert Adapter(RecordingExporter()).send_command("r") == "gradtrace send r --to recording"


def test_one_thing_of_the_whole_run_has_no_cursor(tmp_path: Path) -> None:
    """Its position is stored nowhere; that of others in the run directory, under their name."""
    Adapter(Full()).cursor(tmp_path).save(Position(1, 1))
    assert list(tmp_path.iterdir()) == []
    Adapter(Settling(), "second").cursor(tmp_path).save(Position(1, 1))
    assert [path.name for path in (tmp_path / "cursors").iterdir()] == ["second.json"]
