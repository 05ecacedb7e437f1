"""Who is held responsible for a spike: the step's own batch or the update before it, and of whose
batches which. Asked once; `Spike.blamed` carries the answer to everybody else.

A value is high because of what the step consumed, or because the update before it left the weights
off. A step may consume many batches, though, and most of them are innocent: those of several
micro-batches, and several for each where more than one loader is read. So batches are blamed by
micro-batch. One stands out if its loss is over HIGH times what its loss usually is. Where some do
and others do not, the batches of those that do are blamed. All batches of the step are, where

- none stands out: a gradient may spike at ordinary losses, and the largest of those proves nothing;
- all do: then it was not one of them;
- one that stands out had no batches of its own (a second loss on the same batches), or one that had
  some shows no loss, so that it cannot be told from the others.

Nobody is blamed where the learning rate jumped: no other batch would have made that update better.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradtrace.detect.spikes.history import JUMP, RECENT, Facts, History, lr_ratio
from gradtrace.records import BatchRef, Suspect

HIGH = 1.5
"""A micro-batch's loss stands out from this many times its usual value on, as the least spike."""
UNCLIPPED = 0.9
"""A clip coefficient from here on left the update nearly whole."""


@dataclass(frozen=True, slots=True)
class Blame:
    """Whether the step's batch or the update before is suspected, why, and the batches blamed."""

    suspect: Suspect
    suspicion: str
    batches: tuple[BatchRef, ...]


def blame(signal: str, facts: Facts, history: History) -> Blame:
    """Judges the spike of one signal at a step; `history` holds this step and those before it."""
    suspect, suspicion = _suspect(signal, facts, history)
    if suspect != "update":
        return Blame(suspect, suspicion, responsible(facts, history))
    before = history.before(facts.step)
    if before is None or (not _violent(before) and _lr_rise(before, history) >= JUMP):
        return Blame(suspect, suspicion, ())
    # What was no spike itself names none of its micro-batches: the whole of it made the update.
    spiked = any(score >= 1.0 for score in before.scores.values())
    return Blame(suspect, suspicion, responsible(before, history) if spiked else before.batches)


def responsible(facts: Facts, history: History) -> tuple[BatchRef, ...]:
    """The batches of the micro-batches that stand out where that tells them from others, or all."""
    high = _high(facts, history)
    found = [part for part, stands_out in zip(facts.parts, high, strict=True) if stands_out]
    unseen = [part for part, known in zip(facts.parts, high, strict=True) if known is None]
    if (
        not 0 < len(found) < len(facts.parts)
        or not all(part.batches for part in found)
        or any(part.batches for part in unseen)
    ):
        return facts.batches
    return tuple(dict.fromkeys(batch for part in found for batch in part.batches))


def _high(facts: Facts, history: History) -> list[bool | None]:
    """Whether each micro-batch stands out; None where its loss is not known, or what is usual."""
    usual = history.usual_losses(facts)
    return [
        None if loss is None or loss != loss or level is None else loss > HIGH * level
        for loss, level in zip((part.loss for part in facts.parts), usual, strict=True)
    ]


def _suspect(signal: str, facts: Facts, history: History) -> tuple[Suspect, str]:
    high = [known for known in _high(facts, history) if known is not None]
    if signal == "loss" and len(high) > 1 and any(high):
        if all(high):
            return "update", (
                f"all {len(high)} micro-batches have a high loss: the weights were off before they "
                "were read"
            )
        return "batch", (
            f"{sum(high)} of {len(high)} micro-batches has a high loss, the others do not"
        )
    before = history.before(facts.step)
    if before is None:
        return "unknown", "the step before is not known"
    if _violent(before):
        return "update", (
            f"the step before had a gradient norm of {before.norm:.4g}, a spike itself, and it was "
            "not clipped"
        )
    rise = _lr_rise(before, history)
    if rise >= JUMP:
        return "update", f"the learning rate rose {rise:.3g} times at the step before"
    if len(history.steps) < RECENT:
        return "unknown", "there are too few steps to compare with"
    return "batch", "the step before was ordinary, so its update was too"


def _violent(facts: Facts) -> bool:
    """Whether a step's gradient was a spike, and went into its update as it was."""
    # No clipping has the coefficient NaN.
    return facts.scores.get("grad_norm", 0.0) >= 1.0 and not facts.coefficient < UNCLIPPED


def _lr_rise(facts: Facts, history: History) -> float:
    """How many times the rate of a step's update is that of the update before it.

    A step's rate is that of its own update, which comes after its loss and gradients: a jump shows
    in them from the next step on.
    """
    before = history.before(facts.step)
    return 1.0 if before is None else lr_ratio(before.lr, facts.lr)
