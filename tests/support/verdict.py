"""What a whole run of the tests is judged by, besides its tests.

Where tests run in several processes each finds what is wrong in its own, and the first, which runs
none, judges for all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


class Verdict:
    """A pytest plugin's part: lists what was found at the end, and fails the run where `fails`."""

    title = ""

    def __init__(self, *, fails: bool = True) -> None:
        self._fails = fails
        self._lines: list[str] = []

    def found(self) -> Iterable[str]:
        """A line for each thing that is wrong; asked once, when all tests of a process are over."""
        raise NotImplementedError

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails a run that would have passed."""
        self._lines = list(dict.fromkeys([*self._lines, *self.found()]))
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[self.title] = self._lines
        if self._lines and self._fails and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A process of pytest-xdist's has ended; one that crashed has told nothing."""
        self._lines += getattr(node, "workeroutput", {}).get(self.title, [])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Lists what was found."""
        if self._lines:
            terminalreporter.section(self.title)
            for line in self._lines:
                terminalreporter.line(line)
