"""What a whole run amounts to, computed from its tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradtrace.detect.clipping import clipped_norms
from gradtrace.records import Array, SkippedStep
from gradtrace.runlog.arrays import as_numpy, is_seen
from gradtrace.runlog.reader import Run
from gradtrace.thresholds import (
    ORDINARY_PERCENTILE,
    SUGGESTED_PERCENTILE,
    clips_too_often,
    never_engages,
    ordinary_norm,
    suggested_clip_norm,
)

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class LossSummary:
    """The loss at both ends of the run, and its lowest value with the step that had it.

    `first` and `lowest` are finite; `last` is what the last step had, NaN or Inf too.
    """

    first: float
    last: float
    lowest: float
    lowest_step: int


@dataclass(frozen=True, slots=True)
class ClipSummary:
    """How clipping went.

    `calls` counts the steps on which a clipping function ran, `clipped` those it changed;
    `fraction` is clipped / all recorded steps. `coefficient` is the median factor on the clipped
    steps (1.0 if none), `longest_streak` the most clipped steps in a row, `threshold` the last one
    used.
    """

    calls: int
    clipped: int
    fraction: float
    coefficient: float
    longest_streak: int
    threshold: float


@dataclass(frozen=True, slots=True)
class LayerShare:
    """A layer's median gradient norm and its mean share of the squared global norm."""

    name: str
    norm: float
    share: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in a page of numbers.

    `percentiles` maps 50, 90, 95, 99 to gradient norms before clipping; non-finite ones are left
    out and counted in `nonfinite_steps` with non-finite losses. `discarded` are backwards whose
    gradients the loop threw away. `layers` come largest median norm
    first, all of them. `seconds` is from the first step to the last, `overhead` what gradtrace
    spent on the training thread and `overhead_ratio` their quotient. `advice` is what the numbers
    suggest to look at. None and empty where nothing was recorded.
    """

    name: str
    path: Path
    status: str
    steps: int
    seconds: float
    loss: LossSummary | None
    percentiles: dict[int, float]
    clipping: ClipSummary | None
    nonfinite_steps: int
    skipped_steps: int
    discarded: int
    layers: tuple[LayerShare, ...]
    events: dict[str, int]
    notes: tuple[str, ...]
    overhead: float
    overhead_ratio: float
    advice: tuple[str, ...]


def summarize(run: Run) -> Summary:
    """Sums up a run, finished or not, from all its steps and gradients."""
    steps = run.steps
    loss, norm = _floats(steps, "loss"), _floats(steps, "grad_norm")
    number = _floats(steps, "step")
    finite_norms = norm[np.isfinite(norm)]
    clipping = _clipping(steps)
    percentiles = (
        dict(zip(PERCENTILES, map(float, np.percentile(finite_norms, PERCENTILES)), strict=True))
        if len(finite_norms)
        else {}
    )
    # A null is a loss that was not seen, which reads as NaN; a NaN that was seen is not null.
    bad = (_seen(steps, "loss") & ~np.isfinite(loss)) | (
        _seen(steps, "grad_norm") & ~np.isfinite(norm)
    )
    time = _floats(steps, "time")
    seconds = float(time[-1] - time[0]) if len(time) else 0.0
    overhead = float(np.nansum(_floats(steps, "overhead")))
    kinds = [event.kind for event in run.events]
    return Summary(
        name=str(run.info.get("name", run.path.name)),
        path=run.path,
        status=run.status,
        steps=len(number),
        seconds=seconds,
        loss=_loss(number, loss, _seen(steps, "loss")),
        percentiles=percentiles,
        clipping=clipping,
        nonfinite_steps=int(bad.sum()),
        skipped_steps=int(_bools(steps, "skipped").sum()),
        discarded=_discarded(run),
        layers=_layers(run.gradients),
        events={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        notes=tuple(event.message for event in run.events if event.kind == "note"),
        overhead=overhead,
        overhead_ratio=overhead / seconds if seconds > 0 else math.nan,
        advice=tuple(
            _advice(clipping, clipped_norms(_floats(steps, "norm_before"), norm), int(bad.sum()))
        ),
    )


def _discarded(run: Run) -> int:
    """As counted at the end of the run; of one that was killed, what events tell."""
    told = sum(isinstance(e, SkippedStep) and e.reason == "discarded" for e in run.events)
    ended = run.info.get("summary")
    counted = ended.get("discarded", 0) if isinstance(ended, dict) else 0
    return max(told, int(counted)) if isinstance(counted, int) else told


def _loss(number: Array, loss: Array, recorded: npt.NDArray[np.bool_]) -> LossSummary | None:
    seen = np.flatnonzero(np.isfinite(loss))
    if not len(seen):
        return None
    told = np.flatnonzero(recorded)
    lowest = seen[np.argmin(loss[seen])]
    return LossSummary(
        first=float(loss[seen[0]]),
        last=float(loss[told[-1]]),
        lowest=float(loss[lowest]),
        lowest_step=int(number[lowest]),
    )


def _clipping(steps: Any) -> ClipSummary | None:
    called = _seen(steps, "clip_kind")
    if not called.any():
        return None
    clipped = _bools(steps, "clipped")
    coefficients = _floats(steps, "clip_coefficient")[clipped]
    coefficients = coefficients[np.isfinite(coefficients)]
    return ClipSummary(
        calls=int(called.sum()),
        clipped=int(clipped.sum()),
        fraction=float(clipped.mean()),
        coefficient=float(np.median(coefficients)) if len(coefficients) else 1.0,
        longest_streak=_longest_streak(clipped),
        threshold=float(_floats(steps, "clip_threshold")[called][-1]),
    )


def _longest_streak(flags: npt.NDArray[np.bool_]) -> int:
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return int(lengths.max(initial=0))


def _layers(gradients: Any) -> tuple[LayerShare, ...]:
    """Per layer, over the steps whose norms are finite throughout."""
    if not gradients.num_rows:
        return ()
    column = gradients.column("layer").combine_chunks().dictionary_encode()
    names = column.dictionary.to_pylist()
    layer = as_numpy(column.indices)
    norm = _floats(gradients, "norm")
    _, step = np.unique(_floats(gradients, "step"), return_inverse=True)
    square = np.square(norm)
    # A layer without a gradient has no share; one that is not finite spoils its step.
    weights = np.where(np.isnan(square), 0.0, square)
    weights[_floats(gradients, "nonfinite") > 0] = np.inf
    total = np.bincount(step, weights=weights)[step]
    good = np.isfinite(norm) & np.isfinite(total) & (total > 0)
    if not good.any():
        return ()
    layer, norm, share = layer[good], norm[good], square[good] / total[good]
    sampled_steps = len(np.unique(step[good]))
    shares = np.bincount(layer, weights=share, minlength=len(names)) / sampled_steps
    order = np.argsort(layer, kind="stable")
    present, starts = np.unique(layer[order], return_index=True)
    found = [
        LayerShare(names[which], float(np.median(norms)), float(shares[which]))
        for which, norms in zip(present, np.split(norm[order], starts[1:]), strict=True)
    ]
    return tuple(sorted(found, key=lambda one: (-one.norm, one.name)))


def _advice(clipping: ClipSummary | None, norms: Array, bad: int) -> list[str]:
    advice = []
    if bad:
        advice.append(
            f"{bad} steps had a loss or gradient norm that is not finite: the nonfinite events "
            "name the layers"
        )
    suggested, ordinary = suggested_clip_norm(norms), ordinary_norm(norms)
    if clipping is None or suggested is None:
        return advice  # the first steps say little about the others
    count = int(np.isfinite(norms).sum())
    share = clipping.clipped / clipping.calls
    if clipping.clipped and not clipping.coefficient < 1.0:
        advice.append("clipping reported a change but scaled nothing: check where it is called")
    elif clips_too_often(share):
        advice.append(
            f"{share:.0%} of the steps that clipping ran on are clipped, by a median factor of "
            f"{clipping.coefficient:.2g}: this lowers the learning rate rather than catching "
            f"outliers; a threshold near the {SUGGESTED_PERCENTILE}th percentile of {count:,} "
            f"norms, {suggested:.3g}, would catch outliers only"
        )
    elif (
        not clipping.clipped
        and ordinary is not None
        and never_engages(clipping.threshold, ordinary)
    ):
        advice.append(
            f"clipping never engaged: its threshold {clipping.threshold:.3g} is far above the "
            f"{ORDINARY_PERCENTILE}th percentile of {count:,} norms, {ordinary:.3g}"
        )
    return advice


def _floats(table: Any, column: str) -> Array:
    """A numeric column as float64; null is NaN."""
    return as_numpy(table.column(column)).astype(np.float64, copy=False)


def _bools(table: Any, column: str) -> npt.NDArray[np.bool_]:
    """A boolean column; null is False."""
    return as_numpy(table.column(column))


def _seen(table: Any, column: str) -> npt.NDArray[np.bool_]:
    return is_seen(table.column(column))
