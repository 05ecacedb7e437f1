"""What a trace that saw nothing tells its user: the commonest mistakes, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """What a trace has seen by its end.

    `backwards` reached the watched parameters, `others` did not; `gradients` says whether any step
    had a gradient norm, `losses` a loss, `by_hand` that trace.step() was called, `loader` whether
    one was given, `batches` how many it delivered, `told` that the run was told while it was
    running why nothing was recorded.
    """

    steps: int
    backwards: int
    others: int
    gradients: bool
    losses: bool
    by_hand: bool
    loader: bool
    batches: int
    told: bool = False


def mistakes(seen: Seen) -> Iterator[tuple[str, str]]:
    """What is probably wrong: sources and messages of notes. None for a trace of nothing."""
    if not seen.steps and seen.told:
        pass
    elif not seen.steps and seen.backwards:
        message = (
            f"no step was recorded: {seen.backwards:,} backwards reached this model, but no torch "
            "optimizer has used their gradients: where code of the loop moved the parameters, call "
            "trace.step() where a step ends; where gradients were only looked at, nothing is "
            "missing"
        )
        yield "steps", message
    elif not seen.steps and seen.others:
        message = (
            f"no step was recorded: all {seen.others:,} backwards were those of other parameters: "
            "is this the model that is trained, and not a copy of it? gradtrace(model) takes the "
            "one whose parameters the optimizer holds"
        )
        yield "steps", message
    elif seen.steps and not (seen.backwards or seen.gradients or seen.losses or seen.by_hand):
        message = (
            "no backward reached this model, so steps have no loss and no gradients: are all of "
            "its parameters frozen? trace the part that is trained, gradtrace(part), or say what "
            "the loss is with trace.log(loss=...)"
        )
        yield "gradients", message
    if seen.steps and seen.loader and not seen.batches:
        message = (
            "the loader delivered no batch inside the trace, so steps have no sample ids: loop "
            "over the very loader that was given, from its first batch on, or over "
            "trace.batches(loader)"
        )
        yield "loader", message
