"""What clipping did to a step, from the calls that were seen; in the background thread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gradtrace.assemble.handmade import HandMade
from gradtrace.assemble.readings import Rows, rows_of
from gradtrace.handover.step import ClipCall, Step
from gradtrace.measure.reading import known
from gradtrace.measure.rows import ABS, l2
from gradtrace.records import Array, Clip

_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@dataclass(slots=True)
class Sorted:
    """What clipped a step's gradients, and the gradients that it was given.

    `rows` are those after any rescaling, `factor` is what that multiplied all of them by; None
    where it changed them in another way.
    """

    rows: Rows | None
    clips: list[tuple[tuple[int, ...], Clip]] = field(default_factory=list)
    """Positions and what was done to them, in order."""
    factor: float | None = 1.0


def sort_out(calls: Sequence[ClipCall], measured: Rows | None, hand_made: HandMade) -> Sorted:
    """Tells clipping from measuring and from rescaling.

    A clip to infinity is a way to measure. A change nobody announced is what `hand_made` says;
    where it is no clipping, the gradients are what it made of them.
    """
    found = Sorted(measured)
    for call in calls:
        if call.inferred:
            _judge(call, found, hand_made)
        elif not math.isinf(known(call.threshold)):
            found.clips.append((call.positions, _one(call, found.rows)))
    return found


def _judge(call: ClipCall, found: Sorted, hand_made: HandMade) -> None:
    before, after = _pair(call, found.rows)
    if before is None or after is None or found.rows is None:
        return  # what the gradients were is not known: they were read after the change
    verdict = hand_made.judge(before, after)
    if verdict.kind is not None:
        call.kind, call.threshold = verdict.kind, verdict.threshold
        found.clips.append((call.positions, _changed(call, before, after)))
    elif math.isfinite(l2(before)):
        whole = len(before) == len(found.rows[0])
        factor = verdict.factor if whole or verdict.factor == 1.0 else None
        found.factor = None if factor is None or found.factor is None else found.factor * factor
        found.rows = _replaced(found.rows, rows_of(call.after))


def covers(step: Step) -> bool:
    """Whether one plain L2 clip saw every trained parameter."""
    return (
        len(step.clips) == 1
        and step.clips[0].order == 2.0
        and set(step.shown.tolist()) <= set(step.clips[0].positions)
    )


def known_norm(call: ClipCall) -> float | None:
    """The norm that a call computed, if it did."""
    return None if call.norm is None else call.norm.number


def _replaced(measured: Rows, changed: Rows) -> Rows:
    positions = np.union1d(measured[0], changed[0])
    rows = np.empty((len(positions), measured[1].shape[1]))
    for at, values in (measured, changed):
        rows[np.searchsorted(positions, at)] = values
    return positions, rows


def clip_of(found: Sorted) -> Clip | None:
    """All clipping of a step as one `Clip`; None when there was none.

    Calls on the same parameters follow each other: before is the first's, after the last's.
    Calls on different parameters are joined as parts of one vector.
    """
    clips = [clip for _, clip in found.clips]
    if len(clips) < 2:
        return clips[0] if clips else None
    # By position: the group that has it. So many calls on a layer each cost no more than they hold.
    groups: list[tuple[float, float]] = []
    group_of: dict[int, int] = {}
    for positions, clip in found.clips:
        at = next((group_of[p] for p in positions if p in group_of), None)
        if at is None:
            at = len(groups)
            groups.append((clip.norm_before, clip.norm_after))
        else:
            groups[at] = (groups[at][0], clip.norm_after)
        group_of |= dict.fromkeys(positions, at)
    before = math.hypot(*[one for one, _ in groups])
    after = math.hypot(*[one for _, one in groups])
    kinds = {clip.kind for clip in clips}
    return Clip(
        kind=clips[0].kind if len(kinds) == 1 else "custom",
        threshold=clips[0].threshold,
        norm_before=before,
        norm_after=after,
        coefficient=after / before if before else 1.0,
        clipped=any(clip.clipped for clip in clips),
        calls=sum(clip.calls for clip in clips),
    )


def _one(call: ClipCall, measured: Rows | None) -> Clip:
    if call.norm is not None:
        threshold, before = known(call.threshold), call.norm.number
        coefficient = min(threshold / (before + _EPSILON), 1.0) if before == before else math.nan
        return Clip(
            kind=call.kind,
            threshold=threshold,
            norm_before=before,
            norm_after=before * coefficient,
            coefficient=coefficient,
            clipped=not coefficient >= 1.0,
        )
    raw_rows, rows = _pair(call, measured)
    if raw_rows is None or rows is None:
        return Clip(call.kind, known(call.threshold), math.nan, math.nan, math.nan, clipped=True)
    return _changed(call, raw_rows, rows)


def _changed(call: ClipCall, raw_rows: Array, rows: Array) -> Clip:
    """A clip that is known by the rows before and after it."""
    threshold, before, after = known(call.threshold), l2(raw_rows), l2(rows)
    peak = float(np.max(raw_rows[:, ABS], initial=0.0))
    by_value = call.kind == "value"
    clipped = peak > threshold if by_value else not math.isclose(before, after, rel_tol=1e-6)
    return Clip(
        kind=call.kind,
        threshold=threshold,
        norm_before=before,
        norm_after=after,
        coefficient=after / before if clipped and before else 1.0,
        clipped=clipped,
        cosine=math.nan if call.cosine is None else call.cosine.number,
    )


def _pair(call: ClipCall, measured: Rows | None) -> tuple[Array | None, Array | None]:
    """Rows before and after, of the layers that have both."""
    if measured is None or not call.after:
        return None, None
    positions, rows = rows_of(call.after)
    _, ours, theirs = np.intersect1d(measured[0], positions, return_indices=True)
    return measured[1][ours], rows[theirs]
