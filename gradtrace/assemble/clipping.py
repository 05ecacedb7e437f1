"""What clipping did to a step, from the calls that were seen; in the background thread."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradtrace.assemble.readings import Rows, rows_of
from gradtrace.handover.step import ClipCall, Step
from gradtrace.measure.reading import known
from gradtrace.measure.rows import ABS, NORM, l2
from gradtrace.records import Array, Clip, ClipKind

# Uniform scaling leaves the layers' norm ratios equal but for rounding, coarsest in bfloat16.
_UNIFORM = 2e-3
_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def sort_out(
    calls: Sequence[ClipCall], measured: Rows | None
) -> tuple[list[ClipCall], Rows | None]:
    """The calls that clipped, and the gradients they were given.

    A change nobody announced that makes gradients larger, or finite ones non-finite, is no
    clipping (noise, scaling, a fault): the gradients are then what it made of them.
    """
    clips: list[ClipCall] = []
    for call in calls:
        if not call.inferred and math.isinf(known(call.threshold)):
            continue  # a way to measure
        if call.inferred and measured is not None:
            before, after = _pair(call, measured)
            if before is not None and after is not None and _grew(l2(before), l2(after)):
                measured = _replaced(measured, rows_of(call.after))
                continue
        clips.append(call)
    return clips, measured


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


def _grew(before: float, after: float) -> bool:
    return math.isfinite(before) and not after <= before * (1 + 1e-6)


def _replaced(measured: Rows, changed: Rows) -> Rows:
    positions = np.union1d(measured[0], changed[0])
    rows = np.empty((len(positions), measured[1].shape[1]))
    for at, values in (measured, changed):
        rows[np.searchsorted(positions, at)] = values
    return positions, rows


def clip_of(calls: Sequence[ClipCall], measured: Rows | None) -> Clip | None:
    """All clipping of a step as one `Clip`; None when there was none.

    Calls on the same parameters follow each other: before is the first's, after the last's.
    Calls on different parameters are joined as parts of one vector.
    """
    if not calls:
        return None
    clips = [_one(clip, measured) for clip in calls]
    if len(clips) == 1:
        return clips[0]
    groups: list[tuple[set[int], float, float]] = []
    for call, clip in zip(calls, clips, strict=True):
        positions = set(call.positions)
        for k, (seen, before, _) in enumerate(groups):
            if seen & positions:
                groups[k] = (seen | positions, before, clip.norm_after)
                break
        else:
            groups.append((positions, clip.norm_before, clip.norm_after))
    before = math.hypot(*(group[1] for group in groups))
    after = math.hypot(*(group[2] for group in groups))
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
    threshold = known(call.threshold)
    if call.norm is not None:
        before = call.norm.number
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
        return Clip(call.kind, threshold, math.nan, math.nan, math.nan, clipped=True)
    before, after = l2(raw_rows), l2(rows)
    kind: ClipKind = call.kind
    if call.inferred:
        kind, threshold = infer(raw_rows, rows)
    peak = float(np.max(raw_rows[:, ABS], initial=0.0))
    clipped = peak > threshold if kind == "value" else not math.isclose(before, after, rel_tol=1e-6)
    return Clip(
        kind=kind,
        threshold=threshold,
        norm_before=before,
        norm_after=after,
        coefficient=after / before if clipped and before else 1.0,
        clipped=clipped,
        cosine=math.nan if call.cosine is None else call.cosine.number,
    )


def infer(before: Array, after: Array) -> tuple[ClipKind, float]:
    """What kind of clipping turns `before` into `after` (rows of the same layers), and its limit.

    One ratio of norms for all layers is norm clipping; one largest magnitude shared by all layers
    that lost some is value clipping; anything else is "custom". NaN when the limit did not show.
    """
    some = before[:, NORM] > 0
    with np.errstate(all="ignore"):
        ratios = after[some, NORM] / before[some, NORM]
    usable = len(ratios) > 0 and bool(np.all(np.isfinite(ratios)))
    if usable and np.ptp(ratios) <= _UNIFORM * float(np.max(ratios)):
        scaled = not math.isclose(float(np.median(ratios)), 1.0, rel_tol=1e-6)
        return "norm", l2(after) if scaled else math.nan
    lowered = after[:, ABS] < before[:, ABS] * (1 - 1e-6)
    if np.any(lowered):
        peaks = after[lowered, ABS]
        peak = float(np.max(peaks))
        if np.ptp(peaks) <= 1e-5 * peak and float(np.max(after[:, ABS])) <= peak * (1 + 1e-5):
            return "value", peak
    return "custom", math.nan


def _pair(call: ClipCall, measured: Rows | None) -> tuple[Array | None, Array | None]:
    """Rows before and after, of the layers that have both."""
    if measured is None or not call.after:
        return None, None
    positions, rows = rows_of(call.after)
    _, ours, theirs = np.intersect1d(measured[0], positions, return_indices=True)
    return measured[1][ours], rows[theirs]
