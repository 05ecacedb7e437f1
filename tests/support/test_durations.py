"""What takes long and is not marked slow is listed."""

from __future__ import annotations

import durations
import pytest
from patience import patience

TESTS = """
    import time
    import pytest

    def test_long(): time.sleep(0.02)

    @pytest.mark.slow
    def test_marked(): time.sleep(0.02)

    def test_quick(): pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Three tests, where more than 10 ms is long."""
    monkeypatch.setattr(durations, "LONG", 0.01)
    monkeypatch.setattr(durations, "patience", lambda seconds: seconds)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv(durations.VARIABLE, raising=False)
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\nmarkers = slow: takes long")
    return pytester


def test_a_check_fails_on_what_is_long(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to check, a run that passes fails by an unmarked test alone, which it names."""
    monkeypatch.setenv(durations.VARIABLE, "check")
    result = run.runpytest_inprocess("-p", "durations")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3)
    listed = [line for line in result.outlines if line.endswith("::test_long")]
    assert len(listed) == 1 and " s " in listed[0]
    assert not any(line.endswith(("::test_marked", "::test_quick")) for line in result.outlines)


def test_ci_lists_and_passes(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """In CI, whose machines differ, the same list is a word only."""
    monkeypatch.setenv("CI", "true")
    result = run.runpytest_inprocess("-p", "durations")
    assert result.ret == pytest.ExitCode.OK
    assert any(line.endswith("::test_long") for line in result.outlines)


def test_elsewhere_nothing_is_said(run: pytest.Pytester) -> None:
    """Without being asked, durations are nobody's business."""
    result = run.runpytest_inprocess("-p", "durations")
    assert result.ret == pytest.ExitCode.OK
    assert not any("::test_long" in line for line in result.outlines)


def test_patience_counts(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy the same time is not long."""
    monkeypatch.setattr(durations, "patience", lambda seconds: 1000 * seconds)
    monkeypatch.setenv(durations.VARIABLE, "check")
    assert run.runpytest_inprocess("-p", "durations").ret == pytest.ExitCode.OK


def test_a_test_may_change_what_is_asked(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that spoils the variable for itself alone spoils nothing here."""
    monkeypatch.setattr(durations, "patience", patience)
    monkeypatch.setenv(durations.VARIABLE, "check")
    run.makepyfile(
        """
        def test_spoils(monkeypatch):
            monkeypatch.setenv("GRADTRACE_TEST_PATIENCE", "much")
        """
    )
    assert run.runpytest_inprocess("-p", "durations").ret == pytest.ExitCode.OK


def test_a_wrong_mode_is_refused(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that means nothing ends the run with what was expected."""
    monkeypatch.setenv(durations.VARIABLE, "chekc")
    result = run.runpytest_inprocess("-p", "durations")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*is 'chekc'; expected 'check'*"])
