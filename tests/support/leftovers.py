"""Pytest plugin: no thread of gradtrace's may outlive the tests.

One that still runs while the interpreter shuts down uses what is no longer there: that has ended
green runs with SIGABRT. A run in which one is left fails, and says after which test it was first
seen.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from time import monotonic

import pytest
from patience import patience
from verdict import Verdict

OURS = "gradtrace"
"""How the names of all our threads begin."""

GRACE = 10.0
"""Seconds that all threads which are about to end are given."""


class Leftovers(Verdict):
    """Remembers after which test each of our threads was first seen."""

    title = "threads of gradtrace's that outlive the tests"

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[threading.Thread, str] = {}

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test is over."""
        running = [t for t in threading.enumerate() if t.name.startswith(OURS)]
        self._seen = {t: self._seen.get(t, nodeid) for t in running}

    def found(self) -> Iterable[str]:
        """Waits for those that are about to end."""
        until = monotonic() + patience(GRACE)
        for thread, name in self._seen.items():
            thread.join(max(0.0, until - monotonic()))
            if thread.is_alive():
                yield f"{thread.name}: first seen after {name}"


def pytest_configure(config: pytest.Config) -> None:
    """Always takes part."""
    config.pluginmanager.register(Leftovers(), "gradtrace-leftovers")
