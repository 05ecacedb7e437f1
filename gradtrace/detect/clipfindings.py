"""What a user should know of how a run clips; each finding once."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np

from gradtrace.records import ClipFinding, StepRecord

WINDOW = 200
ALWAYS = 0.95
NEVER_STEPS = 1000
NEVER_MARGIN = 10.0
REPEATS = 5
"""Times that something odd is seen before it is told: once may be an accident."""
TURNED = 0.9
"""A cosine below this is another direction."""

_REMARKS = {
    "no effect": (
        "clipping is called with an infinite threshold and changes nothing",
        "give clip_grad_norm_ the norm you want",
    ),
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
        self._norms: deque[float] = deque(maxlen=NEVER_STEPS)
        self._calls = 0
        self._ever = False
        self._turns: list[float] = []

    def update(self, record: StepRecord) -> list[ClipFinding]:
        """The findings that this record completes."""
        clip = record.clip
        remarks = set(record.remarks)
        if clip is not None:
            self._calls += 1
            self._ever |= clip.clipped
            self._clipped.append(clip.clipped)
            if clip.clipped and math.isfinite(clip.coefficient):
                self._coefficients.append(clip.coefficient)
            if math.isfinite(clip.norm_before):
                self._norms.append(clip.norm_before)
            if clip.kind == "norm" and math.isinf(clip.threshold):
                remarks.add("no effect")
        self._remarks.update(remarks)
        found = [
            self._finding(record, name, {"steps": float(self._remarks[name])})
            for name in sorted(remarks)
            if self._remarks[name] >= REPEATS
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
        if share < ALWAYS:
            return None
        coefficient = float(np.median(self._coefficients))
        lr = record.lr[0] if record.lr else math.nan
        p95, p99 = np.percentile(self._norms, (95, 99)) if self._norms else (math.nan, math.nan)
        return self._finding(
            record,
            "always",
            {
                "share": share,
                "coefficient": coefficient,
                "effective_lr": coefficient * lr,
                "p95": float(p95),
                "p99": float(p99),
                "steps": float(len(self._norms)),
            },
            f"{share:.0%} of the last {WINDOW} steps were clipped, by a median factor of "
            f"{coefficient:.3g}: the learning rate of {lr:.3g} acts as {coefficient * lr:.3g}. A "
            f"max_norm of {p95:.3g} (95th percentile of {len(self._norms)} unclipped norms) or "
            f"{p99:.3g} (99th) would catch outliers only",
        )

    def _never(self, record: StepRecord) -> ClipFinding | None:
        clip = record.clip
        if clip is None or self._ever or self._calls < NEVER_STEPS or not self._norms:
            return None
        if "never" in self._told or not math.isfinite(clip.threshold):
            return None
        p99 = float(np.percentile(self._norms, 99))
        if clip.threshold < NEVER_MARGIN * p99:
            return None
        return self._finding(
            record,
            "never",
            {"threshold": clip.threshold, "p99": p99, "steps": float(self._calls)},
            f"clipping at {clip.threshold:.3g} has not engaged in {self._calls} steps; the 99th "
            f"percentile of the norms is {p99:.3g}: it would not catch a spike of ten times that",
        )

    def _direction(self, record: StepRecord) -> ClipFinding | None:
        clip = record.clip
        if clip is None or not math.isfinite(clip.cosine) or "direction" in self._told:
            return None
        self._turns.append(clip.cosine)
        self._turns = self._turns[-20:]
        middle = float(np.median(self._turns))
        if len(self._turns) < REPEATS or middle >= TURNED:
            return None
        return self._finding(
            record,
            "direction",
            {"cosine": middle, "threshold": clip.threshold},
            f"value clipping at {clip.threshold:.3g} turns the gradient: the cosine between before "
            f"and after is {middle:.2f}; clip_grad_norm_ keeps the direction",
        )
