"""What a whole run of the tests is judged by, besides its tests."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


class Verdict:
    """A pytest plugin's part: lists what was found at the end, and fails the run where `fails`."""

    title = ""

    def __init__(self, *, fails: bool = True) -> None:
        self._fails = fails
        self._lines: list[str] = []

    def found(self) -> Iterable[str]:
        """A line for each thing that is wrong; asked once, when all tests are over."""
        raise NotImplementedError

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails a run that would have passed."""
        self._lines = list(self.found())
        if self._lines and self._fails and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Lists what was found."""
        if self._lines:
            terminalreporter.section(self.title)
            for line in self._lines:
                terminalreporter.line(line)
