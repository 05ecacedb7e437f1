"""All exporters of a trace as one object."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from deliveries import SOON, note, numbers, step
from torch import nn

from gradtrace import gradtrace
from gradtrace.exporter import Exporter
from gradtrace.pipeline.delivery import Delivery, unique_names
from gradtrace.pipeline.position import Cursor, Position
from gradtrace.pipeline.queue import CAPACITY
from gradtrace.records import Record, RunInfo
from gradtrace.testing import FailingExporter, HangingExporter, MemoryBacklog, RecordingExporter


def running(*exporters: Exporter, run: Path | None = None) -> Delivery:
    delivery = Delivery(exporters)
    delivery.open(RunInfo(name="run", started=0.0, path=run), None)
    delivery.start()
    return delivery


def test_every_exporter_gets_every_record() -> None:
    """Each is opened with the run, gets all of it in order, and is closed; no thread is left."""
    before = threading.active_count()
    exporters = [RecordingExporter(f"e{n}") for n in range(5)]
    delivery = running(*exporters)
    assert threading.active_count() == before + 5
    records: list[Record] = [r for n in range(100) for r in (step(n), note(n))]
    for record in records:
        delivery.offer([record])
    assert delivery.flush(SOON)
    assert all(exporter.records == records and not exporter.closed for exporter in exporters)
    assert delivery.close(SOON) == {f"e{n}": "" for n in range(5)}
    assert all(exporter.opened and exporter.closed for exporter in exporters)
    assert threading.active_count() == before


def test_no_exporters_are_fine() -> None:
    """With none every call does nothing."""
    delivery = running()
    delivery.offer([step(0)])
    assert delivery.flush(0.0) and delivery.close(0.0) == {} and delivery.dropped == {}
    assert list(delivery.troubles({}, None)) == []


def test_a_hanging_exporter_holds_up_nobody() -> None:
    """Offering goes on while one exporter hangs, and another one gets everything."""
    hanging, other = HangingExporter(), RecordingExporter()
    delivery = running(hanging, other)
    delivery.offer([step(0)])
    assert hanging.reached.wait(SOON)
    for number in range(1, CAPACITY + 1000):
        delivery.offer([step(number)])
        if number % 1000 == 0:
            assert other.wait_for_steps(number, SOON)
    assert not hanging.records  # it still hangs: all of the above went past it
    assert other.wait_for_steps(CAPACITY + 1000, SOON)
    assert numbers(other) == list(range(CAPACITY + 1000))
    assert not delivery.flush(0.01)
    assert delivery.dropped == {"hanging": 999, "recording": 0}
    hanging.release()
    delivery.close(SOON)


def test_each_catches_up_from_a_log_of_its_own() -> None:
    """Every exporter gets its own reader of the run log, which is for one thread."""
    logs: list[MemoryBacklog] = []

    def backlog() -> MemoryBacklog:
        logs.append(MemoryBacklog())
        return logs[-1]

    slow, quick = HangingExporter(), RecordingExporter()
    delivery = Delivery([slow, quick])
    delivery.open(RunInfo(name="run", started=0.0), backlog)
    assert len(logs) == 2
    delivery.start()
    delivery.offer([step(0)])
    assert slow.reached.wait(SOON)
    records = [step(n) for n in range(1, CAPACITY + 10)]
    for log in logs:
        log.append([step(0), *records])
        log.flush()
    delivery.offer(records)
    slow.release()
    assert delivery.flush(SOON)
    assert numbers(slow) == numbers(quick) == list(range(CAPACITY + 10))
    assert delivery.close(SOON) == {"hanging": "", "recording": ""}


def test_cursors_stand_in_the_run_directory(tmp_path: Path) -> None:
    """One for each exporter, by its name in the trace."""
    delivery = running(RecordingExporter("a"), RecordingExporter("a"), run=tmp_path)
    delivery.offer([step(0), note(0)])
    delivery.close(SOON)
    assert Cursor(tmp_path, "a").load() == Cursor(tmp_path, "a-2").load() == Position(1, 1)


# -- opening ---


class Named(RecordingExporter):
    known_as = ""


def test_names_are_told_before_it_is_opened() -> None:
    """The second of a kind in a trace knows its number."""
    first, second = Named(), Named()
    delivery = running(first, second)
    assert (first.known_as, second.known_as) == ("recording", "recording-2")
    delivery.close(SOON)


def test_exporters_of_one_name_have_cursors_of_their_own() -> None:
    """Names are numbered, never reused, and differ as file names."""

    def names(*given: str) -> list[str]:
        return unique_names([RecordingExporter(name) for name in given])

    assert names("a", "b", "a", "a") == ["a", "b", "a-2", "a-3"]
    assert names("a-2", "a", "a") == ["a-2", "a", "a-3"]
    assert names("a/b", "a_b") == ["a/b", "a_b-2"]
    assert names("A", "a") == ["A", "a-2"]
    assert names("a", "A") == ["a", "A-2"]
    long = names("x" * 200, "x" * 200)
    assert Cursor(Path(), long[0]).path != Cursor(Path(), long[1]).path


def test_an_exporter_that_cannot_be_opened_closes_those_before_it() -> None:
    """Its error is raised, the earlier ones are closed, the later ones never opened."""

    class Refusing(RecordingExporter):
        def open(self, run: RunInfo) -> None:
            raise ValueError("wrong settings")

    before = threading.active_count()
    first, refusing, last = RecordingExporter("a"), Refusing("b"), RecordingExporter("c")
    delivery = Delivery([first, refusing, last])
    with pytest.raises(ValueError, match="wrong settings"):
        delivery.open(RunInfo(name="run", started=0.0), None)
    assert first.closed and not refusing.closed and not last.opened
    assert threading.active_count() == before
    assert delivery.close(SOON) == {}


def test_exporters_that_were_only_opened_are_closed() -> None:
    """Where something else keeps the trace from starting, the close reaches them too."""
    exporter = RecordingExporter()
    delivery = Delivery([exporter])
    delivery.open(RunInfo(name="run", started=0.0), None)
    assert delivery.close(SOON) == {"recording": ""}
    assert exporter.closed


def test_one_object_serves_one_trace_at_a_time(tmp_path: Path) -> None:
    """A second trace refuses it at once and leaves the first alone; after its end it is welcome."""
    model, exporter = nn.Linear(2, 2), RecordingExporter()
    with gradtrace(model, exporters=[exporter], directory=None) as trace:
        inner = gradtrace(model, exporters=[exporter], directory=None)
        with pytest.raises(ValueError, match=r"'recording' is in use by another trace.*another"):
            inner.start()
        assert not exporter.closed
        trace.log(a=1)
    assert exporter.closed
    with gradtrace(model, exporters=[exporter], directory=tmp_path):
        pass


def test_one_that_was_left_behind_may_be_used_again() -> None:
    """An exporter that hung at the end of its trace keeps no later one from starting."""
    exporter = HangingExporter()
    for _ in range(2):
        delivery = running(exporter)
        delivery.offer([step(0)])
        assert exporter.reached.wait(SOON)
        assert delivery.close(0.0) == {"hanging": "1 step"}
    exporter.release()


class Watching(RecordingExporter):
    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        assert self.opened
        self.dropped = dropped


def test_losses_of_all_can_be_watched() -> None:
    """An exporter that wants to know is told, after `open`, where to ask what each has lost."""
    watching, hanging = Watching(), HangingExporter()
    delivery = running(watching, hanging)
    assert watching.dropped() == {"recording": 0, "hanging": 0}
    delivery.offer([step(0)])
    assert hanging.reached.wait(SOON)
    for number in range(1, CAPACITY + 3):
        delivery.offer([step(number)])
    assert watching.dropped()["hanging"] == 2
    hanging.release()
    delivery.close(SOON)


# -- the end ---


def test_closing_waits_no_longer_than_told() -> None:
    """However many exporters hang, the close takes one `timeout`, and says what is owed."""
    exporters = [HangingExporter(f"h{n}") for n in range(4)]
    delivery = running(*exporters)
    delivery.offer([step(0), step(1), note(0)])
    assert all(exporter.reached.wait(SOON) for exporter in exporters)
    start = time.monotonic()
    owed = delivery.close(0.5)
    assert time.monotonic() - start < 0.5 * len(exporters)  # not one after the other
    assert owed == {f"h{n}": "2 steps and 1 event" for n in range(4)}
    for exporter in exporters:
        exporter.release()
        assert exporter.wait_for(3, SOON)


class Hurried(RecordingExporter):
    """Its `close` waits for something that does not come, until it is asked to return."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = threading.Event()

    def close(self) -> None:
        self._asked.wait()
        super().close()

    def hurry(self) -> None:
        self._asked.set()


def test_a_close_that_takes_its_time_is_hurried() -> None:
    """When the time is over it is asked to return, and owes nothing then."""
    exporter = Hurried()
    delivery = running(exporter)
    assert delivery.close(0.0) == {"recording": ""}
    assert exporter.closed


def test_what_is_owed_is_told_with_the_command(tmp_path: Path) -> None:
    """Where there is a run directory; elsewhere it is lost. What was delivered is not spoken of."""

    class Chosen(FailingExporter):
        def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
            return {"SOME_URL": "http://x"}, ["a folder"]

    delivery = running(Chosen(), RecordingExporter())
    delivery.offer([step(0), note(0)])
    owed = delivery.close(SOON)
    assert owed == {"failing": "1 step and 1 event", "recording": ""}
    [(source, message)] = delivery.troubles(owed, Path("my run"))
    assert source == "exporter failing"
    assert message == (
        "exporter 'failing' still owes 1 step and 1 event: deliver it with `SOME_URL=http://x "
        "gradtrace send 'my run' --to failing 'a folder'`"
    )
    [(source, message)] = delivery.troubles(owed, None)
    assert source == "exporter failing"
    assert message == (
        "exporter 'failing' still owes 1 step and 1 event, which is lost: there is no run log"
    )


def test_what_was_lost_is_told() -> None:
    """How many records, and why."""
    hanging = HangingExporter()
    delivery = running(hanging)
    delivery.offer([step(0)])
    assert hanging.reached.wait(SOON)
    delivery.offer([step(n) for n in range(1, CAPACITY + 3)])
    hanging.release()
    [(source, message)] = delivery.troubles(delivery.close(SOON), None)
    assert source == "exporter hanging"
    assert message == (
        "exporter 'hanging' lost 2 records: it could not keep up and they could not be read back "
        "from a run log"
    )
