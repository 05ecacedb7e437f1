"""A trace held against the truth: every difference in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradtrace import Trace
from gradtrace.records import Event, RunNote, StepRecord
from zoo.truth import Batch, ClipTruth, Discard, Step, Truth

WORDS = {
    "loss": ("loss",),
    "norm": ("gradient", "norm"),
    "clip": ("clip",),
    "batches": ("batch", "loader"),
    "ids": ("sample", "id"),
}
"""What a note must speak of that explains why something is missing."""


@dataclass
class Seen:
    """What a trace says when it has ended; holds nothing of the loop's."""

    steps: list[StepRecord]
    events: list[Event]
    notes: list[RunNote]
    discarded: int | None

    @classmethod
    def of(cls, trace: Trace) -> Seen:
        """All that is compared."""
        return cls(trace.steps, trace.events, trace.notes, getattr(trace, "discarded", None))

    def says(self, words: Sequence[str]) -> bool:
        """Whether a note has one of the words."""
        return any(word in note.message for note in self.notes for word in words)


def differences(truth: Truth, seen: Seen) -> list[str]:
    """What the trace says that is not so, or does not say."""
    found = [
        f"no note speaks of {' or '.join(words)}: {[n.message for n in seen.notes]}"
        for words in truth.words
        if not seen.says(words)
    ]
    if truth.unseen and not seen.steps and truth.steps:
        return found
    steps = truth.steps
    if len(seen.steps) != len(steps):
        steps = joined(steps)
    if len(seen.steps) != len(steps):
        numbers = f"{len(seen.steps)} records of {len(truth.steps)} steps"
        found.append(f"{numbers}, losses {[r.losses for r in seen.steps[:4]]}")
    else:
        for k, (step, record) in enumerate(zip(steps, seen.steps, strict=True)):
            found += [f"step {k}: {text}" for text in _step(step, record, seen)]
    found += _discards(truth, seen)
    if truth.quiet and seen.notes:
        found.append(f"notes {[note.message for note in seen.notes]}")
    return found + [text for check in truth.checks if (text := check(seen)) is not None]


def joined(steps: Sequence[Step]) -> list[Step]:
    """The steps, those that may share a record with the one before put together."""
    found: list[Step] = []
    for step in steps:
        if not step.joined or not found:
            found.append(step)
            continue
        last = found[-1]
        rows = {**last.rows, **step.rows}
        losses = (last.losses or ()) + (step.losses or ())
        found[-1] = replace(
            last,
            losses=losses,
            loss=sum(losses) / len(losses),
            norm=math.hypot(*rows.values()),
            rows=rows,
            batches=last.batches + step.batches,
            unsure=last.unsure | step.unsure,
            lr=(last.lr or ()) + (step.lr or ()),
        )
    return found


def close(got: float | None, expected: float | None, *, within: float = 1e-5) -> bool:
    """Equal to five digits, or both missing, or both not finite."""
    if got is None or expected is None:
        return got is expected
    if not math.isfinite(expected):
        return not math.isfinite(got)
    return math.isclose(got, expected, rel_tol=within, abs_tol=1e-12)


def _step(step: Step, record: StepRecord, seen: Seen) -> Iterator[str]:
    def compared(what: str, *, missing: bool) -> bool:
        excused = missing and what in step.lacks and seen.says(WORDS[what])
        return what not in step.unsure and not excused

    if compared("loss", missing=record.loss is None and not record.losses):
        yield from _losses(step, record)
    finite = step.norm is None or math.isfinite(step.norm)
    if compared("norm", missing=record.grad_norm is None):
        if finite and not close(record.grad_norm, step.norm):
            yield f"grad_norm {record.grad_norm} instead of {step.norm}"
        elif not finite and record.grad_norm is not None and math.isfinite(record.grad_norm):
            yield f"grad_norm {record.grad_norm}, which is not finite"
    if finite and compared("norm", missing=record.gradients is None):
        yield from _rows(step, record)
    if finite and compared("clip", missing=record.clip is None):
        yield from _clip(step.clip, record)
    excused = step.reused and not record.batches
    if not excused and compared("batches", missing=not record.batches):
        yield from _batches(step, record, seen)
    if step.lr is not None and not same(record.lr, step.lr):
        yield f"lr {record.lr} instead of {step.lr}"
    if record.skipped != step.skipped:
        yield f"skipped {record.skipped} instead of {step.skipped}"


def same(got: Sequence[float], expected: Sequence[float]) -> bool:
    """Whether two lists of numbers are equal to five digits."""
    return len(got) == len(expected) and all(map(close, got, expected))


def _losses(step: Step, record: StepRecord) -> Iterator[str]:
    loss, losses = step.loss, step.losses
    if step.losses_or is not None and same(record.losses, step.losses_or):
        losses = step.losses_or
        loss = sum(losses) / len(losses)
    if losses is not None and not same(record.losses, losses):
        yield f"losses {record.losses} instead of {losses}"
    if not close(record.loss, loss):
        yield f"loss {record.loss} instead of {loss}"
    parts = tuple(part.loss for part in record.parts if part.loss is not None)
    if not same(parts, record.losses):
        yield f"parts with losses {parts} instead of {record.losses}"
    if losses and len(record.parts) == len(losses) == len(step.batches) > 1:
        for part, batch in zip(record.parts, step.batches, strict=True):
            if not _is(part.batches, (batch,)):
                yield f"a part of {part.batches} instead of {batch}"


def _rows(step: Step, record: StepRecord) -> Iterator[str]:
    if not step.rows:
        return
    if record.gradients is None:
        yield "no table of gradients"
        return
    names = record.gradients.names
    if len(set(names)) != len(names):
        yield f"a name twice in {names}"
    norms = dict(zip(names, record.gradients.column("norm").tolist(), strict=True))
    noise = 1e-7 * (step.norm or 0.0)  # of float32 sums that should be zero
    expected_names = step.rows.keys() if "rows" in step.unsure else norms.keys() | step.rows.keys()
    for name in sorted(expected_names):
        got, expected = norms.get(name, math.nan), step.rows.get(name, math.nan)
        if math.isnan(got) and math.isnan(expected):
            continue
        if not math.isclose(got, expected, rel_tol=1e-5, abs_tol=noise):
            yield f"norm of {name} {got} instead of {expected}"


def _clip(truth: ClipTruth | None, record: StepRecord) -> Iterator[str]:
    clip = record.clip
    if clip is None or truth is None:
        measured = clip is not None and clip.threshold == math.inf and not clip.clipped
        if (clip is not None and not measured) or (truth is not None and truth.sure):
            yield f"clip {clip} instead of {truth}"
        return
    if clip.kind != truth.kind:
        yield f"clip of kind {clip.kind} instead of {truth.kind}"
    for name, got, expected in (
        ("before", clip.norm_before, truth.before),
        ("after", clip.norm_after, truth.after),
        ("coefficient", clip.coefficient, truth.coefficient),
    ):
        # clip_grad_norm_ adds 1e-6 to the norm, and works in float32.
        if not close(got, expected, within=1e-4 if name == "coefficient" else 2e-5):
            yield f"clip {name} {got} instead of {expected}"


def _is(got: Sequence[Any], expected: Sequence[Batch]) -> bool:
    """Whether batches are these."""
    return len(got) == len(expected) and all(
        (ref.batch_index, ref.sample_ids) == (index, ids)
        and (epoch is None or ref.epoch == epoch)
        and _plain(ref.sample_ids)
        for ref, (epoch, index, ids) in zip(got, expected, strict=True)
    )


def _plain(ids: Sequence[Any] | None) -> bool:
    return ids is None or all(type(i) in (int, str) for i in ids)


def _batches(step: Step, record: StepRecord, seen: Seen) -> Iterator[str]:
    got, expected = record.batches, step.batches
    if "ids" in step.lacks and seen.says(WORDS["ids"]):
        missing = len(got) == len(expected) and all(ref.sample_ids is None for ref in got)
        expected = tuple((e, i, None) for e, i, _ in expected) if missing else expected
    if not _is(got, expected):
        shown = [(ref.epoch, ref.batch_index, ref.sample_ids) for ref in got]
        yield f"batches {shown} instead of {list(expected)}"


def _discards(truth: Truth, seen: Seen) -> Iterator[str]:
    count = len(truth.discards)
    if seen.discarded is not None and not count <= seen.discarded <= count + truth.explored:
        yield f"{seen.discarded} discarded instead of {count}"
    told: list[Any] = [e for e in seen.events if e.kind == "skipped_step"]
    overflows = [e.step for e in told if getattr(e, "reason", "overflow") == "overflow"]
    expected = [k for k, step in enumerate(truth.steps) if step.skipped]
    if overflows != expected:
        yield f"overflows told at {overflows} instead of {expected}"
    if seen.discarded is None:
        return  # not told yet by this version
    thrown = [e for e in told if getattr(e, "reason", "overflow") == "discarded"]
    if (len(thrown) == 0) != (count == 0) or len(thrown) > count:
        if not truth.explored:
            yield f"{len(thrown)} events of discarded work instead of {count}"
        return
    rest: list[Discard] = list(truth.discards)
    for event in thrown:
        while rest and not _is_discard(event, rest[0]):
            rest.pop(0)
        if not rest:
            yield f"discarded work that was not: {event}"
            return
        rest.pop(0)


def _is_discard(event: Any, truth: Discard) -> bool:
    mean = sum(truth.losses) / len(truth.losses) if truth.losses else None
    return (
        close(event.loss, mean)
        and (event.norm is None or close(event.norm, truth.norm))
        and _is(event.batches, truth.batches)
    )
