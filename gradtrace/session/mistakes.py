"""What a trace that saw nothing tells its user: the commonest mistakes, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """What a trace has seen by its end.

    `backwards` reached the watched parameters, `others` did not; `gradients` says whether any step
    had a gradient norm, `losses` a loss, `by_hand` that trace.step() was called, `loader` whether
    one was given, `batches` how many it delivered.
    """

    steps: int
    backwards: int
    others: int
    gradients: bool
    losses: bool
    by_hand: bool
    loader: bool
    batches: int


def mistakes(seen: Seen) -> Iterator[tuple[str, str]]:
    """What is probably wrong: sources and messages of notes. None for a trace of nothing."""
    if not seen.steps and seen.backwards:
        message = (
            "no step was recorded: gradients were computed, but no torch optimizer moved these "
            "parameters: call trace.step() where a step ends"
        )
        yield "steps", message
    elif not seen.steps and seen.others:
        message = (
            "no step was recorded: all backwards were those of other parameters: is this the model "
            "that is trained, and not a copy of it?"
        )
        yield "steps", message
    elif seen.steps and not (seen.backwards or seen.gradients or seen.losses or seen.by_hand):
        message = (
            "no backward reached this model, so steps have no loss and no gradients: are all of "
            "its parameters frozen?"
        )
        yield "gradients", message
    if seen.steps and seen.loader and not seen.batches:
        message = (
            "the loader delivered no batch inside the trace, so steps have no sample ids: loop "
            "over the very loader that was given, from its first batch on, or over "
            "trace.batches(loader)"
        )
        yield "loader", message
