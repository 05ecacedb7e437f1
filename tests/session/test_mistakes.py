"""A trace that saw nothing says why; one that saw what it should says nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradtrace.session.mistakes import Seen, mistakes

GOOD = Seen(steps=10, backwards=10, others=0, gradients=True, loader=True, batches=10)


@pytest.mark.parametrize(
    ("seen", "sources"),
    [
        (GOOD, []),
        (replace(GOOD, others=30), []),  # a GAN of which one model is traced
        (replace(GOOD, backwards=0), []),  # gradients that were written by hand
        (Seen(0, 0, 0, False, True, 5), []),  # a loop that only looks at the data
        (Seen(0, 7, 0, False, False, 0), ["steps"]),
        (Seen(0, 0, 7, False, True, 7), ["steps"]),
        (replace(GOOD, backwards=0, gradients=False), ["gradients"]),
        (replace(GOOD, batches=0), ["loader"]),
        (replace(GOOD, loader=False, batches=0), []),
    ],
)
def test_mistakes_are_told_from_what_is_meant(seen: Seen, sources: list[str]) -> None:
    """Each is named by its source, once, and nothing else is."""
    assert [source for source, _ in mistakes(seen)] == sources
