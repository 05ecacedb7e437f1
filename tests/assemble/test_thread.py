"""The background thread: in order, in time, and one thing's errors cost nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from gradtrace.assemble import thread as background
from gradtrace.assemble.thread import LATE, TICK, Background
from gradtrace.guard import Guard
from gradtrace.handover import handoff
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.ring import Ring
from gradtrace.handover.step import Batch, Handed, LateLog, Leftovers, Lost, Part, Step
from gradtrace.measure.reading import Pending, Reading
from gradtrace.records import Discard, Event, Record, RunNote, StepRecord
from gradtrace.sampling import Sampling

WAITING = 1000
DUE = Sampling().due(1)


def nothing(source: str, text: str) -> None:
    """The errors themselves fail the test, see conftest.py."""


class Kept:
    """A sink that keeps the steps, and tells when it has the last one."""

    def __init__(self, last: int) -> None:
        self.steps: list[int] = []
        self.complete = threading.Event()
        self._last = last

    def __call__(self, records: Sequence[Record]) -> None:
        self.steps += [record.step for record in records if isinstance(record, StepRecord)]
        if self.steps and self.steps[-1] == self._last:
            self.complete.set()


def handed_over(steps: int) -> Handoff[Handed]:
    """A hand-over in which that many steps wait."""
    handoff: Handoff[Handed] = Handoff()
    for number in range(steps):
        assert handoff.put(Step(DUE, number=number))
    return handoff


def test_flushing_waits_for_all_that_was_handed_over() -> None:
    """After `flush` a queue that was many turns long has reached the sinks, in order."""
    kept = Kept(WAITING - 1)
    thread = Background(handed_over(WAITING), [], [kept], Guard(nothing), name="test")
    thread.start()
    assert thread.flush(time.monotonic() + 30)
    assert kept.steps == list(range(WAITING))
    assert thread.stop(time.monotonic() + 30)


def test_a_thread_that_is_behind_does_not_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a full turn's worth is waiting the next turn follows without a pause."""
    monkeypatch.setattr(background, "POLL", 60.0)
    # The last step stays held back until somebody asks; the one before it must come by itself.
    kept = Kept(WAITING - 2)
    thread = Background(handed_over(WAITING), [], [kept], Guard(nothing), name="test")
    thread._wake.set()  # the one time that the thread is woken
    thread.start()
    assert kept.complete.wait(30)
    assert thread.stop(time.monotonic() + 30)
    assert kept.steps == list(range(WAITING))


def note(text: str, step: int = 0) -> RunNote:
    return RunNote(step=step, time=0.0, severity="info", message=text, source="test")


class Marking:
    """A detector with an event for every step, and one for the end."""

    def __init__(self, name: str) -> None:
        self._name = name

    def update(self, record: StepRecord) -> list[Event]:
        return [note(f"{self._name} {record.step}", record.step)]

    def finish(self) -> list[Event]:
        return [note(f"{self._name} end")]


class Turned:
    """A background whose turns are taken by hand, at a time that is set by hand."""

    def __init__(self, *detectors: Any, **options: Any) -> None:
        self.now = 0.0
        self.queue: Handoff[Handed] = Handoff()
        self.got: list[Record] = []
        self.told: list[str] = []
        self.background = Background(
            self.queue,
            detectors,
            [*options.pop("sinks", ()), self.got.extend],
            Guard(lambda source, text: self.told.append(source)),
            name="test",
            clock=lambda: self.now,
            **options,
        )

    def put(self, number: int, **logged: float) -> None:
        assert self.queue.put(Step(DUE, number=number, logged=dict(logged)))

    def log(self, **values: float) -> None:
        assert self.queue.put(LateLog.of(values))

    def turn(self, *, final: bool = False) -> list[str]:
        """What the sinks got in this turn, in words."""
        before = len(self.got)
        self.background.turn(final=final)
        return [
            f"step {record.step}" if isinstance(record, StepRecord) else record.message
            for record in self.got[before:]
        ]


def test_a_record_is_followed_by_its_events() -> None:
    """Each step, then what the detectors found in it, in their order."""
    turned = Turned(Marking("a"), Marking("b"))
    turned.put(0)
    turned.put(1)
    assert turned.turn(final=True) == ["step 0", "a 0", "b 0", "step 1", "a 1", "b 1"]


def test_the_newest_record_is_held_back_for_a_while() -> None:
    """Until the next one comes, LATE seconds have passed, or somebody asks for all."""
    turned = Turned()
    turned.put(0)
    assert turned.turn() == []
    turned.put(1)
    assert turned.turn() == ["step 0"]
    turned.now += LATE * 0.9
    assert turned.turn() == []
    turned.now += LATE * 0.2
    assert turned.turn() == ["step 1"]
    turned.put(2)
    assert turned.turn(final=True) == ["step 2"]


def test_late_values_join_the_record_that_is_held_back() -> None:
    """Where that has gone on already they go with the next; later values replace earlier ones."""
    turned = Turned()
    turned.put(0, a=1.0, b=1.0)
    turned.turn()
    turned.log(b=2.0)
    turned.log(c=3.0)
    turned.turn(final=True)
    turned.log(d=4.0)
    turned.log(e=5.0)
    turned.turn(final=True)
    turned.put(1, f=6.0)
    turned.put(2)
    turned.turn(final=True)
    logged = [dict(record.logged) for record in turned.got if isinstance(record, StepRecord)]
    assert logged == [{"a": 1.0, "b": 2.0, "c": 3.0}, {"d": 4.0, "e": 5.0, "f": 6.0}, {}]


def test_scores_are_those_of_the_record_just_seen() -> None:
    """A record carries what the detectors made of it, in a copy."""
    scores: dict[str, float] = {}

    class Scoring(Marking):
        def update(self, record: StepRecord) -> list[Event]:
            scores["loss"] = float(record.step)
            return []

    turned = Turned(Scoring(""), scores=lambda: scores)
    for number in range(3):
        turned.put(number)
    turned.turn(final=True)
    assert [getattr(record, "scores", None) for record in turned.got] == [
        {"loss": 0.0},
        {"loss": 1.0},
        {"loss": 2.0},
    ]


def test_news_comes_after_what_the_turn_brought() -> None:
    """Also when nothing was handed over."""
    waiting = [note("first")]

    def news() -> list[Event]:
        taken: list[Event] = list(waiting)
        waiting.clear()
        return taken

    turned = Turned(Marking("a"), news=news)
    turned.put(0)
    assert turned.turn(final=True) == ["step 0", "a 0", "first"]
    waiting.append(note("second"))
    assert turned.turn() == ["second"] and turned.turn() == []


def test_ticks_come_in_time() -> None:
    """Each TICK seconds, whether or not anything arrives, and when all is asked for."""
    ticks: list[int] = []
    turned = Turned(tick=lambda: ticks.append(1))
    for _ in range(10):
        turned.now += TICK * 0.35
        turned.turn()
    assert len(ticks) == 3
    turned.turn(final=True)
    assert len(ticks) == 4


def broken(*args: Any) -> Any:
    raise ValueError("on purpose")


class Broken(Marking):
    update = finish = broken  # type: ignore[assignment]


@pytest.mark.swallows
def test_what_fails_costs_nothing_else() -> None:
    """Of detectors, sinks, ticks and steps, each is told by name and the others go on."""
    turned = Turned(Broken(""), Marking("a"), sinks=[broken], tick=broken)
    turned.put(0)
    odd = Step(DUE, number=1)
    odd.tables.append(("gradients", [Reading([torch.ones(1)], broken)]))
    assert turned.queue.put(odd)
    unreadable = Step(DUE, number=2, logged={})
    unreadable.scale = None
    unreadable.tables.append(
        ("gradients", [Reading([torch.ones(1).to(torch.float8_e4m3fn)], broken)])
    )
    assert turned.queue.put(unreadable)
    turned.put(3)
    assert turned.turn(final=True) == ["step 0", "a 0", "step 3", "a 3"]
    assert sorted(turned.told) == [
        *("the assembly of a step", "the background tick", "the detector Broken"),
        *("the reading of a step", "the sink broken"),
    ]


def test_what_was_thrown_away_last_follows_the_last_step() -> None:
    """When no step has come after it, it is told by itself, with its numbers."""

    def told(discards: Sequence[Discard]) -> list[Event]:
        return [note(f"lost {one.loss} of {len(one.batches)}") for one in discards]

    turned = Turned(Marking("a"), leftover=told)
    turned.put(0)
    losses = [Pending(torch.tensor(float(k))) for k in (1, 3)]
    parts = [Part(k, loss, (Batch(0, k, k),)) for k, loss in enumerate(losses)]
    assert turned.queue.put(Leftovers([Lost(parts), Lost([])]))
    assert turned.turn(final=True) == ["step 0", "a 0", "lost 2.0 of 2", "lost None of 0"]


@pytest.mark.swallows
def test_the_end_brings_what_waited_for_it() -> None:
    """Detectors' last events reach the sinks after all records, whatever one of them raises."""
    kept: list[str] = []

    def keep(records: Sequence[Record]) -> None:
        kept.extend(r.message if isinstance(r, RunNote) else f"step {r.step}" for r in records)

    thread = Background(
        handed_over(2), [Broken(""), Marking("a")], [keep], Guard(nothing), name="test"
    )
    thread.start()
    assert thread.stop(time.monotonic() + 30) and thread.ended
    assert kept == ["step 0", "a 0", "step 1", "a 1", "a end"]


def test_a_thread_that_never_started_stops_at_once() -> None:
    """As after a start that failed."""
    thread = Background(handed_over(1), [], [], Guard(nothing), name="test")
    assert thread.ended and thread.stop(time.monotonic() + 30)


def test_values_that_never_arrive_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing gives up at its deadline, and stopping at its own, with what had arrived."""
    monkeypatch.setattr(handoff, "_is_far", lambda tensor: tensor.numel() == 7)
    queue = handed_over(3)
    ring = queue._rings[torch.device("cpu")] = Ring(torch.device("cpu"))
    stuck = Step(DUE, number=3, tables=[("gradients", [Reading([torch.ones(7)], broken)])])
    assert queue.put(stuck)
    ring._marks_read[:] = -1  # as long as the copy is under way
    kept = Kept(2)
    thread = Background(queue, [], [kept], Guard(nothing), name="test")
    thread.start()
    assert not thread.flush(time.monotonic() + 0.2)
    assert thread.stop(time.monotonic() + 0.1)
    assert kept.steps == [0, 1, 2] and len(queue) == 1


def test_a_sink_knows_its_thread() -> None:
    """What runs inside is told apart from everybody else."""
    seen: list[bool] = []
    made: list[Background] = []
    sinks = [lambda records: seen.append(made[0].is_caller)]
    thread = Background(handed_over(1), [], sinks, Guard(nothing), name="test")
    made.append(thread)
    thread.start()
    assert thread.stop(time.monotonic() + 30)
    assert seen == [True] and not thread.is_caller
