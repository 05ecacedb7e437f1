"""Time-outs that grow with the machine."""

from __future__ import annotations

import os

import patience as module
import pytest
from patience import MOST, VARIABLE, factor, patience


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An idle machine of the usual speed, on which nothing is said."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(module, "_slowness", lambda: 1.0)
    monkeypatch.setattr(module, "_waiting", lambda: 0.5)
    return monkeypatch


def test_an_idle_machine_takes_what_is_said(machine: pytest.MonkeyPatch) -> None:
    """On a machine that is idle, or faster than usual, time-outs are those written down."""
    assert patience(30.0) == 30.0
    machine.setattr(module, "_slowness", lambda: 0.2)
    assert patience(30.0) == 30.0


@pytest.mark.parametrize("slow", ["_slowness", "_waiting"])
def test_a_slow_machine_takes_longer(machine: pytest.MonkeyPatch, slow: str) -> None:
    """Slow cores and many processes multiply time-outs, up to a limit."""
    machine.setattr(module, slow, lambda: 3.5)
    assert patience(30.0) == 105.0
    machine.setattr(module, slow, lambda: 400.0)
    assert patience(30.0) == 30.0 * MOST


def test_the_user_has_the_last_word(machine: pytest.MonkeyPatch) -> None:
    """What the variable says counts, whatever was measured and beyond the limit, too."""
    machine.setattr(module, "_waiting", lambda: 5.0)
    for text, expected in (("1", 1.0), ("2.5", 2.5), ("40", 40.0)):
        machine.setenv(VARIABLE, text)
        assert factor() == expected


@pytest.mark.parametrize("text", ["", "fast", "0.5", "-3", "nan", "inf"])
def test_a_wrong_factor_is_refused(machine: pytest.MonkeyPatch, text: str) -> None:
    """What is no number of at least 1 raises, with the variable, the value and what to do."""
    machine.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match=f"{VARIABLE} is '{text}'; expected .* leave it out"):
        factor()


def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowness is time against that of an idle machine, waiting is the load of each core."""
    monkeypatch.setattr(module, "_work", lambda: 4 * module._IDLE_SECONDS)
    module._slowness.cache_clear()
    try:
        assert module._slowness() == pytest.approx(4.0)
    finally:
        module._slowness.cache_clear()
    monkeypatch.setattr(os, "getloadavg", lambda: (12.0, 1.0, 1.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert module._waiting() == 3.0

    def unknown() -> tuple[float, float, float]:
        raise OSError("not here")

    monkeypatch.setattr(os, "getloadavg", unknown)
    assert module._waiting() == 1.0


def test_work_takes_time() -> None:
    """The computation that is timed is one: a fraction of a second, never nothing."""
    assert 1e-4 < module._work() < 10.0
