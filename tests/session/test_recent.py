"""What is kept of a run in memory: the newest, within bounds."""

from __future__ import annotations

import numpy as np
import pytest
from build import skipped, step, table

from gradtrace.records.histograms import BINS, LayerHistograms
from gradtrace.session import recent
from gradtrace.session.recent import Recent

TABLE = table(("a",) * 50, norm=1.0)
SOME = LayerHistograms(("a",) * 50, np.ones((50, BINS), np.int64), np.ones(50))


def test_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many steps, so many bytes of tables and so many events; all are counted."""
    monkeypatch.setattr(recent, "STEPS", 20)
    kept = Recent()
    for number in range(50):
        kept.add([step(number, gradients=TABLE)])
    assert [one.step for one in kept.steps()] == list(range(30, 50))
    assert (kept.count, kept.first_time, kept.last_time) == (50, 0.0, 49.0)
    monkeypatch.setattr(recent, "TABLE_BYTES", 5 * TABLE.nbytes)
    kept.add([step(50, gradients=TABLE)])
    assert [one.step for one in kept.steps()] == list(range(46, 51))
    kept.add([skipped()] * (recent.EVENTS + 3))
    assert len(kept.events()) == recent.EVENTS


def test_histograms_go_before_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the newest histograms stay, and they cost no step its place."""
    monkeypatch.setattr(recent, "STEPS", 40)
    monkeypatch.setattr(recent, "HISTOGRAM_BYTES", 3 * SOME.nbytes)
    monkeypatch.setattr(recent, "TABLE_BYTES", 100 * TABLE.nbytes)
    kept = Recent()
    for number in range(100):
        sampled = SOME if number % 10 == 0 else None
        kept.add([step(number, gradients=TABLE, histograms=sampled)])
    steps = kept.steps()
    assert [one.step for one in steps] == list(range(60, 100))
    assert [one.step for one in steps if one.histograms is not None] == [70, 80, 90]
    for number in range(100, 200):
        kept.add([step(number, gradients=TABLE)])
    assert all(one.histograms is None for one in kept.steps())
    assert kept._histogram_bytes == 0 and not kept._with_histograms
