"""Causes that show in the numbers of the step, and of the one before it."""

from __future__ import annotations

from collections.abc import Iterator

from gradtrace.detect.spikes.case import FIXED, Case, CauseTest, unknown
from gradtrace.detect.spikes.history import RECENT
from gradtrace.records import Cause

CALM = 0.5
"""A score below this is ordinary."""


def bad_input(case: Case) -> Iterator[Cause]:
    """A module whose output is not finite, or gradients that are not."""
    if case.facts.bad_module is not None:
        yield Cause(
            "non-finite input",
            f"the output of {case.facts.bad_module} is not finite",
            0.95,
            {"module": case.facts.bad_module},
        )
    elif case.spike.nonfinite:
        yield Cause(
            "non-finite gradients",
            f"{case.spike.nonfinite} gradient values are NaN or Inf",
            0.9,
            {"count": case.spike.nonfinite},
        )


def half_precision(case: Case) -> Iterator[Cause]:
    """A step that the AMP scaler skipped shortly before."""
    scale = case.facts.scale
    if scale is None:
        return
    skipped = [facts.step for facts in case.recent[-RECENT - 1 :] if facts.skipped]
    if skipped:
        yield Cause(
            "half precision",
            f"the AMP scaler skipped step {skipped[-1]} at scale {scale:g}: half "
            "precision overflowed",
            FIXED,
            {"steps": skipped, "scale": scale},
        )


def one_rank(case: Case) -> Iterator[Cause]:
    """Whether one rank's data are behind it cannot be told from one rank."""
    if case.world_size > 1:
        yield unknown(
            "one rank",
            f"this is rank {case.spike.rank}; what the others saw is in their own runs",
        )


def one_signal(case: Case) -> Iterator[Cause]:
    """A high loss with an ordinary gradient, or the reverse."""
    other = "grad_norm" if case.spike.signal == "loss" else "loss"
    score = case.facts.scores.get(other)
    if score is None or score >= CALM:
        return
    evidence = {"score": case.spike.score, f"{other}_score": score}
    if case.spike.signal == "loss":
        yield Cause(
            "unusual loss only",
            "the loss is unusual, its gradient is not: labels that contradict what is learned, "
            "rather than broken inputs",
            0.5,
            evidence,
        )
    else:
        yield Cause(
            "unusual gradient only",
            "the gradient is unusual, the loss is not: a few samples or layers pull hard",
            0.4,
            evidence,
        )


def update_before(case: Case) -> Iterator[Cause]:
    """The update that `blame` suspects."""
    if case.spike.suspect == "update":
        yield Cause("update before", case.spike.suspicion, FIXED, {"step": case.spike.step - 1})


TESTS: tuple[CauseTest, ...] = (bad_input, half_precision, one_rank, one_signal, update_before)
