"""Causes that show in when spikes come: a period, and where the learning rate stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gradtrace.detect.spikes.case import FIXED, Case, CauseTest, unknown
from gradtrace.detect.spikes.history import JUMP, RECENT, History, lr_ratio
from gradtrace.detect.spikes.period import MIN_EVENTS, Period, find_period
from gradtrace.records import Cause

SHOWN = 20
"""Phases that evidence lists at most."""
TOLERANCE = 0.02
"""How much of a known rhythm a period may be off, and still be it."""
WARM_UP = 40
"""Steps in which the top of a warm-up is looked for."""
AFTER_TOP = 15
"""Steps after it that may still be put down to it."""


def period(case: Case) -> Iterator[Cause]:
    """Spikes every k steps, and what else happens that often; the p-value is `find_period`'s."""
    spike, history = case.spike, case.history
    onsets = [past.step for past in history.spikes if past.step < spike.step]
    onsets.append(spike.step)
    if len(onsets) < MIN_EVENTS:
        yield unknown("period", f"{len(onsets)} spikes so far, it takes {MIN_EVENTS}")
        return
    rhythms = list(_rhythms(history))
    found = find_period(onsets, known=[round(k) for _, k in rhythms]) or find_period(onsets)
    if found is None or spike.step % found.steps not in found.phases:
        return
    matches = [name for name, k in rhythms if _matches(found, k)]
    matches += [
        name
        for name, steps in (
            ("pauses (evaluation or checkpoints)", history.pauses),
            ("jumps of the learning rate", history.jumps),
        )
        if _coincides(found, steps)
    ]
    text = f"spikes come every {found.steps} steps ({found.hits} of {found.slots} times)"
    batches = len(case.facts.batches)
    if batches > 1:
        text += f", {found.steps * batches} batches at {batches} a step"
    if matches:
        text += f", as do {', '.join(matches)}"
    yield Cause(
        "period",
        text,
        1.0 - found.p_value,
        {
            "steps": found.steps,
            "batches": found.steps * max(1, batches),
            "phases": list(found.phases[:SHOWN]),
            "hits": found.hits,
            "slots": found.slots,
            "p": found.p_value,
            "matches": matches,
        },
    )


def learning_rate(case: Case) -> Iterator[Cause]:
    """A jump within the last steps, or the top of a warm-up."""
    recent = case.recent[-WARM_UP:]
    for before, after in zip(recent[-RECENT - 1 :], recent[-RECENT:], strict=False):
        rise = lr_ratio(before.lr, after.lr)
        if rise >= JUMP and len(recent) > RECENT:
            yield Cause(
                "learning rate",
                f"the learning rate rose {rise:.3g} times at step {after.step}",
                FIXED,
                {"step": after.step, "ratio": rise},
            )
            return
    rates = np.asarray([facts.lr[0] for facts in recent if facts.lr])
    if len(rates) < 20 or not np.isfinite(rates).all():
        return
    top = int(rates.argmax())
    rising = top >= 10 and bool((np.diff(rates[: top + 1]) > 0).all())
    if rising and len(rates) - top <= AFTER_TOP and rates[top] > 1.05 * rates[0]:
        yield Cause(
            "warm-up",
            f"the learning rate is at the top of its warm-up, {rates[top]:.3g}",
            0.5,
            {"lr": float(rates[top]), "steps_since_top": len(rates) - 1 - top},
        )


def _rhythms(history: History) -> Iterator[tuple[str, float]]:
    starts = list(history.epoch_starts)
    if len(starts) >= 3:
        yield "epochs", float(np.median(np.diff(starts)))


def _matches(found: Period, k: float) -> bool:
    return k >= 2 and abs(found.steps - k) <= max(1.0, TOLERANCE * k)


def _coincides(found: Period, steps: Sequence[int]) -> bool:
    """Whether something else happens at the period's phase, or one step before it."""
    if len(steps) < 3:
        return False
    offset = (np.asarray(steps) - found.phase) % found.steps
    near = (offset <= 1) | (offset >= found.steps - 1)
    return bool(near.mean() >= 0.6) and int(near.sum()) >= 3 and found.steps > 4


TESTS: tuple[CauseTest, ...] = (period, learning_rate)
