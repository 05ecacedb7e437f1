"""Pytest plugin: what takes long has to be marked slow, so that the quick tests stay quick.

Lists, at the end, what took over 5 s (on an idle machine, see patience.py) and is not marked. Where
GRADTRACE_TEST_DURATIONS is "check" they fail the run; where CI is set they are listed only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
from patience import patience
from verdict import Verdict

VARIABLE = "GRADTRACE_TEST_DURATIONS"
LONG = 5.0
"""Seconds of a quick test on an idle machine. What several share starts at no test's cost."""


class Durations(Verdict):
    """Remembers the tests that took too long."""

    title = f"took over {LONG:g} s, and is not marked slow"

    def __init__(self, *, fails: bool) -> None:
        super().__init__(fails=fails)
        self._long: list[tuple[float, str]] = []
        self._seconds = 0.0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Looks at a test that is over, with the load that the machine has then."""
        if report.when == "call":
            self._seconds = report.duration
        elif report.when == "teardown":  # what the test had changed has been taken back
            if "slow" not in report.keywords and self._seconds > patience(LONG):
                self._long.append((self._seconds, report.nodeid))
            self._seconds = 0.0

    def found(self) -> Iterable[str]:
        """Longest first."""
        for seconds, name in sorted(self._long, reverse=True):
            yield f"{seconds:.1f} s {name}"


def pytest_configure(config: pytest.Config) -> None:
    """Takes part where it is asked for, and in CI."""
    mode = os.environ.get(VARIABLE)
    if mode not in (None, "check"):
        raise pytest.UsageError(f"{VARIABLE} is {mode!r}; expected 'check', or leave it out")
    if mode == "check" or os.environ.get("CI"):
        config.pluginmanager.register(Durations(fails=mode == "check"), "gradtrace-durations")
