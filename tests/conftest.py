"""What every test gets: nothing that gradtrace holds back in production is held back here."""

from __future__ import annotations

from collections.abc import Iterator

import patience
import pytest
import torch
from torch.nn.modules import module

from gradtrace.guard import Guard
from gradtrace.taps.patches import registry

pytest_plugins = ("durations", "leftovers", "optional", "pytester")

# Two threads on tiny tensors spend their time waiting for each other.
torch.set_num_threads(1)


def pytest_configure() -> None:
    """A wrong factor for time-outs ends the run before any test."""
    try:
        patience.factor()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


SERVERS = {"server", "scraped"}
"""Fixtures that start a real server, which takes longer than a quick test may."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks a real server is slow."""
    for item in items:
        if isinstance(item, pytest.Function) and SERVERS.intersection(item.fixturenames):
            item.add_marker("slow")


def pytest_report_header() -> str:
    """Tells how far time-outs are stretched."""
    return f"time-outs: x{patience.factor():.1f}"


@pytest.fixture(autouse=True)
def internal_errors(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Exception]]:
    """Errors of gradtrace's own during a test; they fail it unless it is marked `swallows`.

    A test that is marked fails without any: it no longer provokes what it is about.
    """
    errors: list[Exception] = []
    held_back = Guard.failed

    def failed(self: Guard, source: str, error: Exception) -> None:
        errors.append(error)
        held_back(self, source, error)

    monkeypatch.setattr(Guard, "failed", failed)
    yield errors
    swallows = request.node.get_closest_marker("swallows") is not None
    if errors and not swallows:
        raise ExceptionGroup("gradtrace held back errors of its own", errors)
    assert errors or not swallows, "marked `swallows`, but no error of gradtrace's was held back"


def _watched() -> list[str]:
    """The functions that traces watch at present."""
    return [entry.target.name for entry in registry._installed.values() if entry.observers()]


@pytest.fixture(autouse=True)
def _everything_is_restored() -> Iterator[None]:
    """After each test torch has its own functions, and no hook of a trace.

    But for what is watched by a trace that runs through several tests, as a fixture of theirs.
    """
    before = _watched()
    yield
    assert _watched() == before, "a trace has left these functions watched"
    assert before or not module._global_forward_hooks, "a trace has left its hook on modules"
