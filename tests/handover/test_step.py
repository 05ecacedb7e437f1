"""A step while it is open: what belongs to it, and what joins it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from gradtrace.handover.step import Batch, ClipCall, LateLog, Part, Step
from gradtrace.measure.reading import Pending, Reading
from gradtrace.sampling import Sampling

DUE = Sampling(activations=1, updates=1, histograms=1).due(0)


def batches(*ordinals: int) -> list[Batch]:
    return [Batch(0, ordinal, ordinal) for ordinal in ordinals]


def reading() -> Reading:
    return Reading([torch.ones(1)], lambda arrays: (np.arange(1), arrays[0]))


HAPPENED: dict[str, Callable[[Step], object]] = {
    "a backward": lambda step: step.add_part(None),
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


def test_batches_belong_to_the_backward_that_follows() -> None:
    """Each backward has those since the one before; what comes later waits for the next."""
    step = Step(DUE)
    first, second, third = batches(0, 1, 2)
    step.batches += [first, second]
    step.add_part(torch.tensor(1.0))
    step.add_part(None)
    step.batches.append(third)
    assert [part.batches for part in step.parts] == [(first, second), ()]
    assert step.parts[1].loss is None
    step.add_part(torch.tensor(2.0))
    assert step.parts[2].batches == (third,)


@pytest.mark.parametrize("late", [0, 1])
def test_a_later_piece_keeps_its_own_batches(late: int) -> None:
    """What came after the first piece's last backward is nobody's, also for what follows."""
    one, two, three, four = batches(0, 1, 2, 3)
    first, second = Step(DUE), Step(DUE)
    first.batches.append(one)
    first.add_part(None)
    first.batches += [two][:late]
    second.batches.append(three)
    second.add_part(None)
    first.absorb(second)
    first.batches.append(four)
    first.add_part(None)
    assert [part.batches for part in first.parts] == [(one,), (three,), (four,)]
    assert first.batches == [one, *[two][:late], three, four]


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
    cells = [Pending(torch.tensor(float(k))) for k in range(9)]
    table, after, counted = reading(), reading(), reading()
    table.divisor = cells[0]
    step = Step(
        DUE,
        parts=[Part(cells[1], ()), Part(None, ())],
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
    )
    expected = {*cells, *table.pending, *after.pending, *counted.pending}
    found = list(step.cells())
    assert set(found) == expected and len(found) == len(expected)


def test_late_values_arrive_like_a_step() -> None:
    """Tensors among them are cells."""
    log = LateLog.of({"a": 1.5, "b": torch.tensor(2.0)})
    [cell] = log.cells()
    assert log.values == {"a": 1.5, "b": cell}
