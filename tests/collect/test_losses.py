"""What is known of the losses that backwards started from."""

from __future__ import annotations

import torch

from gradtrace.collect.losses import Losses


def noted() -> tuple[Losses, list[str]]:
    notes: list[str] = []
    return Losses(lambda source, text: notes.append(f"{source}: {text}")), notes


def test_backwards_of_this_model_are_numbered() -> None:
    """Those of others have no number, and those without a loss have one."""
    losses, notes = noted()
    numbers = []
    for ours in (True, False, False, True, True):
        numbers.append(losses.part(torch.ones(()) if ours else None).number)
        if ours:
            losses.counted()
    assert numbers == [0, 1, 1, 1, 2] and notes == []


def test_a_divisor_counts_from_there_on() -> None:
    """Each part has the one of its time."""
    losses, _ = noted()
    parts = []
    for divisor in (None, 4.0, None, 1.0):
        losses.divisor = losses.divisor if divisor is None else divisor
        parts.append(losses.part(torch.ones(())))
    assert [part.divisor for part in parts] == [1.0, 4.0, 4.0, 1.0]


def test_a_loss_after_a_strange_backward_is_unknown() -> None:
    """It may be a surrogate for that one's; once an optimizer has stepped it is a loss again."""
    losses, notes = noted()
    losses.strange()
    assert losses.part(torch.ones(())).loss is None and len(notes) == 1
    assert losses.part(None).loss is None and len(notes) == 1
    losses.used()
    known = losses.part(torch.full((), 2.0)).loss
    assert known is not None and float(known.tensor or 0) == 2.0 and len(notes) == 1


def test_each_note_says_what_would_mend_it() -> None:
    """The line to write stands in it."""
    losses, notes = noted()
    losses.none()
    losses.too_many()
    losses.strange()
    losses.part(torch.ones(()))
    for note, line in zip(notes, ("trace.log(", "trace.step()", "trace.log("), strict=True):
        assert line in note
