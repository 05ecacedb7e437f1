"""A step while it is open: what belongs to it, and what joins it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from gradtrace.handover.step import Batch, ClipCall, LateLog, Lost, Part, Step
from gradtrace.measure.reading import Pending, Reading
from gradtrace.sampling import Sampling

DUE = Sampling(activations=1, updates=1, histograms=1).due(0)


def batches(*ordinals: int) -> list[Batch]:
    return [Batch(0, ordinal, ordinal) for ordinal in ordinals]


def reading() -> Reading:
    return Reading([torch.ones(1)], lambda arrays: (np.arange(1), arrays[0]))


HAPPENED: dict[str, Callable[[Step], object]] = {
    "a backward": lambda step: step.parts.append(Part(0, None)),
    "an optimizer": lambda step: step.stepped.append(None),
    "a clip": lambda step: step.clips.append(ClipCall("norm", (0,))),
    "a measurement": lambda step: step.tables.append(("gradients", [])),
    "a skipped step": lambda step: setattr(step, "skipped", True),
}


@pytest.mark.parametrize("case", HAPPENED)
def test_what_makes_a_step(case: str) -> None:
    """Each of these by itself does; batches and logged values alone do not."""
    step = Step(DUE)
    step.batches += batches(0)
    step.logged["a"] = 1.0
    assert not step
    HAPPENED[case](step)
    assert step


def test_a_backward_that_both_pieces_used_is_one() -> None:
    """Two optimizers may use the gradients of one backward: joined, it is there once."""
    shared, own = Part(0, None), Part(1, None)
    first, second = Step(DUE, parts=[shared]), Step(DUE, parts=[shared, own])
    first.absorb(second)
    assert first.parts == [shared, own]


def test_measurements_go_with_the_gradients() -> None:
    """What was read of thrown-away gradients, and done to them, leaves the step; the rest stays."""
    step = Step(DUE, batches=batches(0), remarks={"twice"})
    read, weights = reading(), reading()
    step.tables = [("gradients", [read]), ("weights", [weights])]
    step.clips.append(ClipCall("norm", (0,)))
    step.count([0], [reading()])
    lost = step.take_measurements()
    assert lost.tables == [("gradients", [read])] and len(lost.clips) == 1
    assert step.tables == [("weights", [weights])] and step.batches == batches(0)
    assert (step.clips, step.histograms, step.remarks) == ([], [], set())


def test_what_was_read_of_some_gradients_may_be_void() -> None:
    """Where others are still in use: tables so far do not count for them, later ones do."""
    first, second = Step(DUE), Step(DUE)
    first.tables = [("weights", []), ("gradients", [])]
    second.tables = [("gradients", [])]
    second.count([0], [reading()])
    second.count([1, 2], [reading()])
    second.forget([0, 1])
    second.tables.append(("gradients", []))
    assert second.void == [(0, 1, frozenset({0, 1}))]
    assert [positions for positions, _ in second.histograms] == [{1, 2}]
    first.absorb(second)
    assert first.void == [(2, 3, frozenset({0, 1}))]
    first.narrow(Sampling(updates=0, activations=0).due(99))
    assert first.void == [(1, 2, frozenset({0, 1}))] and len(first.tables) == 3


def test_pieces_are_joined() -> None:
    """All that happened in either is in the whole, in order; the later loss scale counts."""
    first, second = Step(DUE, scale=torch.tensor(2.0)), Step(DUE, scale=torch.tensor(4.0))
    for k, piece in enumerate((first, second)):
        piece.clips.append(ClipCall("norm", (k,)))
        piece.tables.append((("weights", "updates")[k], []))
        piece.logged |= {"both": float(k), f"only {k}": 1.0}
        piece.lr.append(float(k))
        piece.remarks.add(f"{k}")
        piece.stepped.append(k)
        piece.found_inf.append(Pending(torch.tensor(float(k))))
        piece.count([k, 9], [reading()])
    second.skipped = True
    second.counting = True
    first.absorb(second)
    assert [clip.positions for clip in first.clips] == [(0,), (1,)]
    assert [table for table, _ in first.tables] == ["weights", "updates"]
    assert first.logged == {"both": 1.0, "only 0": 1.0, "only 1": 1.0}
    assert (first.lr, first.remarks, first.stepped) == ([0.0, 1.0], {"0", "1"}, [0, 1])
    assert len(first.found_inf) == 2 and first.skipped and first.counting is True
    assert first.scale is second.scale
    assert [positions for positions, _ in first.histograms] == [{0, 9}, {1, 9}]
    third = Step(DUE)
    first.absorb(third)
    assert first.scale is second.scale and first.skipped and first.counting is True


ALL = ["gradients", "activations", "output_gradients", "weights", "updates"]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(activations=1, updates=1, histograms=1), ALL),
        (Sampling(gradients=1, activations=0, updates=0), ["gradients"]),
        (Sampling(gradients=0, activations=1, updates=0), ["activations", "output_gradients"]),
        (Sampling(gradients=0, activations=0, updates=1), ["weights", "updates"]),
        (Sampling(gradients=0, activations=0, updates=0), []),
    ],
)
def test_a_piece_gives_what_its_step_asks_for(sampling: Sampling, kept: list[str]) -> None:
    """What it measured for another step it might have been is let go."""
    due = sampling.due(0)
    first, second = Step(due), Step(DUE)
    second.tables = [(table, [reading()]) for table in ALL]
    second.count([0], [reading()])
    first.absorb(second)
    assert [table for table, _ in first.tables] == kept
    assert [table for table in ALL if first.asks_for(table)] == kept
    assert bool(first.histograms) == due.histograms


def test_a_histogram_replaces_an_earlier_one_of_the_same_gradients() -> None:
    """So that accumulation costs one step's memory; those of other layers stay."""
    step = Step(DUE)
    one, two, three = [reading()], [reading()], [reading()]
    step.count([0, 1], one)
    step.count([2], two)
    step.count([0, 1, 3], three)
    assert step.histograms == [(frozenset({2}), two), (frozenset({0, 1, 3}), three)]


def test_everything_that_has_to_arrive_is_named_once() -> None:
    """Each cell of a step, wherever it stands, once; numbers that are known are none."""
    cells = [Pending(torch.tensor(float(k))) for k in range(13)]
    table, after, counted, thrown = reading(), reading(), reading(), reading()
    table.divisor = cells[0]
    step = Step(
        DUE,
        parts=[Part(0, cells[1]), Part(1, None)],
        clips=[
            ClipCall("value", (0,), cells[2], cells[3], after=[after], cosine=cells[4]),
            ClipCall("norm", (0,), 0.5),
        ],
        tables=[("gradients", [table])],
        histograms=[(frozenset({0}), [counted])],
        logged={"a": cells[5], "b": 1.0},
        lr=[cells[6], 0.1],
        divisor=cells[7],
        found_inf=[cells[8]],
        lost=[
            Lost(
                [Part(2, cells[9])],
                tables=[("gradients", [thrown])],
                clips=[ClipCall("norm", (0,), cells[10], cells[11])],
                divisor=cells[12],
            )
        ],
    )
    expected = {*cells, *table.pending, *after.pending, *counted.pending, *thrown.pending}
    found = list(step.cells())
    assert set(found) == expected and len(found) == len(expected)


def test_late_values_arrive_like_a_step() -> None:
    """Tensors among them are cells."""
    log = LateLog.of({"a": 1.5, "b": torch.tensor(2.0)})
    [cell] = log.cells()
    assert log.values == {"a": 1.5, "b": cell}
