"""What a user should know of how a run clips; each finding once."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np

from gradtrace.detect.clipping import Newest, clipped_norm
from gradtrace.records import ClipFinding, StepRecord
from gradtrace.thresholds import (
    NEVER_MARGIN,
    NORMS_KEPT,
    ODD_REPEATS,
    ORDINARY_PERCENTILE,
    SUGGESTED_PERCENTILE,
    TURNED,
    clips_too_often,
    never_engages,
    ordinary_norm,
    suggested_clip_norm,
)

WINDOW = 200
"""Steps with clipping that "always" looks at."""
NEVER_EVERY = 100
"""Steps with clipping after which "never" is looked at again; a percentile costs a millisecond."""
TURNS = 20
"""Cosines that "direction" looks at."""

_REMARKS = {
    "no gradients": (
        "clipping is called when there are no gradients",
        "call it after backward and before zero_grad, with a list of parameters, not an iterator",
    ),
    "after the step": (
        "clipping is called after optimizer.step, on gradients that were used already",
        "move it between backward and step",
    ),
    "twice": (
        "the same gradients are clipped twice in a step",
        "leave one of the calls out: the smaller threshold wins",
    ),
    "still scaled": (
        "gradients are clipped while they are still multiplied by the AMP loss scale",
        "call scaler.unscale_(optimizer) before clipping",
    ),
}


class ClipJudge:
    """Fed every record in order; gives each `ClipFinding` once. A few us a step."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._remarks: Counter[str] = Counter()
        self._coefficients: deque[float] = deque(maxlen=WINDOW)
        self._clipped: deque[bool] = deque(maxlen=WINDOW)
        self._norms = Newest(NORMS_KEPT)
        self._calls = 0
        self._ever = False
        self._turns: deque[float] = deque(maxlen=TURNS)

    def update(self, record: StepRecord) -> list[ClipFinding]:
        """The findings that this record completes."""
        clip = record.clip
        self._norms.add(clipped_norm(record))
        if clip is not None:
            self._calls += 1
            self._ever |= clip.clipped
            self._clipped.append(clip.clipped)
            if clip.clipped and math.isfinite(clip.coefficient):
                self._coefficients.append(clip.coefficient)
        self._remarks.update(record.remarks)
        found = [
            self._finding(record, name, {"steps": float(self._remarks[name])})
            for name in sorted(record.remarks)
            if self._remarks[name] >= ODD_REPEATS
        ]
        found += [self._always(record), self._never(record), self._direction(record)]
        return [finding for finding in found if finding is not None]

    def finish(self) -> list[ClipFinding]:
        """Nothing waits for the end of the run."""
        return []

    def _finding(
        self, record: StepRecord, name: str, evidence: dict[str, float], text: str = ""
    ) -> ClipFinding | None:
        if name in self._told:
            return None
        self._told.add(name)
        if not text:
            what, remedy = _REMARKS[name]
            text = f"{what}: {remedy}"
        return ClipFinding(
            step=record.step,
            time=record.time,
            severity="warning",
            message=text,
            rank=record.rank,
            finding=name,
            evidence=evidence,
        )

    def _always(self, record: StepRecord) -> ClipFinding | None:
        if "always" in self._told or len(self._clipped) < WINDOW or not self._coefficients:
            return None
        share = sum(self._clipped) / len(self._clipped)
        if not clips_too_often(share):
            return None
        coefficient = float(np.median(self._coefficients))
        lr = record.lr[0] if record.lr else math.nan
        norms = self._norms.values
        p95, p99 = np.percentile(norms, (95, 99)) if len(norms) else (math.nan, math.nan)
        text = (
            f"{share:.0%} of the last {WINDOW} steps were clipped, by a median factor of "
            f"{coefficient:.3g}: the learning rate of {lr:.3g} acts as {coefficient * lr:.3g}"
        )
        suggested = suggested_clip_norm(norms)
        if suggested is not None:
            text += (
                f". A max_norm of {suggested:.3g}, the {SUGGESTED_PERCENTILE}th percentile of "
                f"{len(norms):,} norms before clipping, would catch outliers only"
            )
        return self._finding(
            record,
            "always",
            {
                "share": share,
                "coefficient": coefficient,
                "effective_lr": coefficient * lr,
                "p95": float(p95),
                "p99": float(p99),
                "steps": float(len(norms)),
            },
            text,
        )

    def _never(self, record: StepRecord) -> ClipFinding | None:
        clip = record.clip
        if clip is None or self._ever or self._calls % NEVER_EVERY or "never" in self._told:
            return None
        if math.isinf(clip.threshold):
            return None  # a way to measure, in runs written before this was known
        ordinary = ordinary_norm(self._norms.values)
        if ordinary is None or not never_engages(clip.threshold, ordinary):
            return None
        return self._finding(
            record,
            "never",
            {"threshold": clip.threshold, "p99": ordinary, "steps": float(self._calls)},
            f"clipping at {clip.threshold:.3g} has not engaged in {self._calls} steps; the "
            f"{ORDINARY_PERCENTILE}th percentile of the norms is {ordinary:.3g}: it would not "
            f"catch a spike of {NEVER_MARGIN:g} times that",
        )

    def _direction(self, record: StepRecord) -> ClipFinding | None:
        clip = record.clip
        if clip is None or not math.isfinite(clip.cosine) or "direction" in self._told:
            return None
        self._turns.append(clip.cosine)
        middle = float(np.median(self._turns))
        if len(self._turns) < ODD_REPEATS or middle >= TURNED:
            return None
        return self._finding(
            record,
            "direction",
            {"cosine": middle, "threshold": clip.threshold},
            f"value clipping at {clip.threshold:.3g} turns the gradient: the cosine between before "
            f"and after is {middle:.2f}; clip_grad_norm_ keeps the direction",
        )
