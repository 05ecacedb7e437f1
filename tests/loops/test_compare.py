"""The comparison of a trace with the truth finds every kind of lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from zoo.compare import Seen, differences, joined
from zoo.ordinary import plain
from zoo.tracing import Tracer
from zoo.truth import Discard, Truth

from gradtrace.records import LayerTable, RunNote, SkippedStep, StepRecord

NOTE = RunNote(step=0, time=0.0, severity="warning", source="losses", message="the loss is unseen")


@pytest.fixture(scope="module")
def honest() -> tuple[Truth, Seen]:
    """A plain loop's truth, and what a trace of it says."""
    torch.manual_seed(0)
    truth, tracer = Truth(), Tracer("cpu")
    plain(truth, tracer)
    return truth, Seen.of(tracer.traces[0])


def louder(table: LayerTable | None) -> LayerTable:
    assert table is not None
    return replace(table, values=table.values * 1.01)


def batch(record: StepRecord, **changed: Any) -> StepRecord:
    return replace(record, batches=(replace(record.batches[0], **changed),))


def clip(record: StepRecord, **changed: Any) -> StepRecord:
    assert record.clip is not None
    return replace(record, clip=replace(record.clip, **changed))


LIES: dict[str, Callable[[StepRecord], StepRecord]] = {
    "losses": lambda r: replace(r, losses=(*r.losses, 1.0)),
    "loss ": lambda r: replace(r, loss=None),
    "parts": lambda r: replace(r, parts=()),
    "grad_norm": lambda r: replace(r, grad_norm=(r.grad_norm or 0) * (1 + 1e-4)),
    "norm of": lambda r: replace(r, gradients=louder(r.gradients)),
    "no table": lambda r: replace(r, gradients=None),
    "clip None": lambda r: replace(r, clip=None),
    "clip of kind": lambda r: clip(r, kind="value"),
    "clip coefficient": lambda r: clip(r, coefficient=0.123),
    "clip before": lambda r: clip(r, norm_before=0.123),
    "clip after": lambda r: clip(r, norm_after=0.123),
    "batches": lambda r: batch(r, sample_ids=(1, 2, 3, 99)),
    "batches (": lambda r: batch(r, batch_index=99),
    "batches [(7": lambda r: batch(r, epoch=7),
    "batches []": lambda r: replace(r, batches=()),
    "lr": lambda r: replace(r, lr=(0.1,)),
    "skipped": lambda r: replace(r, skipped=True),
}


def changed(seen: Seen, step: int, record: StepRecord) -> Seen:
    return replace(seen, steps=[*seen.steps[:step], record, *seen.steps[step + 1 :]])


def test_the_truth_is_no_lie(honest: tuple[Truth, Seen]) -> None:
    """A trace that says what the loop says has no differences."""
    assert differences(*honest) == []


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_one_step_is_found(name: str, honest: tuple[Truth, Seen]) -> None:
    """Each field of a record that is not so is a difference, and named."""
    truth, seen = honest
    found = differences(truth, changed(seen, 5, LIES[name](seen.steps[5])))
    assert found and all(text.startswith("step 5") for text in found)
    assert any(name.split()[0] in text for text in found)


def test_missing_and_extra_steps_are_found(honest: tuple[Truth, Seen]) -> None:
    """A step more or less is a difference."""
    truth, seen = honest
    for steps in (seen.steps[1:], [*seen.steps, seen.steps[-1]]):
        assert "records of 12 steps" in differences(truth, replace(seen, steps=steps))[0]


def test_ids_that_are_no_plain_values_are_found(honest: tuple[Truth, Seen]) -> None:
    """Sample ids that are equal, but numpy's, are a difference."""
    import numpy as np

    truth, seen = honest
    ids: Any = tuple(np.int64(i) for i in seen.steps[0].batches[0].sample_ids or ())
    assert differences(truth, changed(seen, 0, batch(seen.steps[0], sample_ids=ids)))


def test_a_note_where_none_is_due_is_found(honest: tuple[Truth, Seen]) -> None:
    """Where nothing is missing a note is a wrong one; where one is due its absence is found."""
    truth, seen = honest
    assert "notes" in differences(truth, replace(seen, notes=[NOTE]))[0]
    due = replace(truth, quiet=False, words=[("loss",)])
    assert "no note" in differences(due, seen)[0]
    assert differences(due, replace(seen, notes=[NOTE])) == []


def test_what_is_missing_is_excused_by_a_note_only(honest: tuple[Truth, Seen]) -> None:
    """A step that may lack its loss is right without it if a note speaks of losses."""
    truth, seen = honest
    lacking = replace(
        truth, steps=[replace(step, lacks={"loss"}) for step in truth.steps], quiet=False
    )
    seen = changed(seen, 3, replace(seen.steps[3], loss=None, losses=(), parts=()))
    assert differences(lacking, seen)
    assert differences(lacking, replace(seen, notes=[NOTE])) == []


def overflow(step: int) -> Any:
    return SkippedStep(step=step, time=0.0, severity="info", message="", scale=1.0)


def test_overflows_that_were_not_are_found(honest: tuple[Truth, Seen]) -> None:
    """Events of skipped steps are those of steps that were skipped."""
    truth, seen = honest
    assert "overflows" in differences(truth, replace(seen, events=[overflow(2)]))[0]


class Thrown:
    """An event of discarded work, as later versions have it."""

    kind, reason = "skipped_step", "discarded"

    def __init__(self, loss: float, norm: float, batches: Sequence[Any] = ()) -> None:
        self.loss, self.norm, self.batches = loss, norm, batches


@pytest.mark.parametrize(
    ("count", "events", "fine"),
    [
        (1, [Thrown(2.0, 3.0)], True),
        (0, [], False),
        (2, [Thrown(2.0, 3.0)], False),
        (1, [], False),
        (1, [Thrown(1.0, 3.0)], False),
        (1, [Thrown(2.0, 4.0)], False),
        (1, [Thrown(2.0, 3.0), Thrown(2.0, 3.0)], False),
    ],
)
def test_discarded_work_is_counted_and_told(
    honest: tuple[Truth, Seen], count: int, events: list[Any], fine: bool
) -> None:
    """How much was thrown away, and of what loss and norm, is compared once a trace tells it."""
    truth, seen = honest
    truth = replace(truth, discards=[Discard((1.0, 3.0), (), 3.0)])
    found = differences(truth, replace(seen, discarded=count, events=events))
    assert (found == []) == fine


def test_steps_that_may_share_a_record_are_joined(honest: tuple[Truth, Seen]) -> None:
    """Two uses of gradients in one record have the losses, rates and rows of both."""
    truth, _ = honest
    first, second = truth.steps[0], replace(truth.steps[1], joined=True, rows={"more": 3.0})
    [both] = joined([first, second])
    assert both.losses is not None and len(both.losses) == 2 and both.lr == (0.05, 0.05)
    assert both.norm == pytest.approx(((first.norm or 0) ** 2 + 9) ** 0.5)
