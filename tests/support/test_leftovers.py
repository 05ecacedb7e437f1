"""A thread of gradtrace's that outlives the tests fails the run."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import leftovers
import pytest

LEFT = "left-by-a-test"
"""In place of the name that all our threads have, so that others do not count."""

TESTS = f"""
    import threading

    def test_before(): pass

    def test_leaves(release):
        threading.Thread(target=release.wait, name="{LEFT}-1", daemon=True).start()

    def test_after(): pass
"""


class Release:
    """Gives the tests inside an event that the test outside holds."""

    def __init__(self) -> None:
        self.event = threading.Event()

    @pytest.fixture
    def release(self) -> threading.Event:
        return self.event


@pytest.fixture
def inside(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Release]:
    """Three tests, the second of which leaves a thread."""
    monkeypatch.setattr(leftovers, "OURS", LEFT)
    pytester.makepyfile(TESTS)
    release = Release()
    yield release
    release.event.set()


def test_what_is_left_fails_the_run(
    inside: Release, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run fails though its tests pass, and names the thread and the test it came with."""
    monkeypatch.setattr(leftovers, "GRACE", 0.0)
    result = pytester.runpytest_inprocess("-p", "leftovers", plugins=[inside])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3)
    listed = [line for line in result.outlines if line.startswith(LEFT)]
    assert len(listed) == 1 and listed[0].endswith("::test_leaves")


def test_what_ends_in_time_is_fine(inside: Release, pytester: pytest.Pytester) -> None:
    """Threads that are about to end when the tests are over are waited for, and not told."""
    threading.Timer(0.3, inside.event.set).start()
    result = pytester.runpytest_inprocess("-p", "leftovers", plugins=[inside])
    assert result.ret == pytest.ExitCode.OK
    assert not any(line.startswith(LEFT) for line in result.outlines)


def test_what_is_left_in_another_process_fails_the_run(pytester: pytest.Pytester) -> None:
    """Where the tests run in processes of their own, the first one hears of it and tells it."""
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    pytester.makeconftest(f"import leftovers\nleftovers.OURS = '{LEFT}'\nleftovers.GRACE = 0.0")
    pytester.makepyfile(
        f"""
        import threading

        def test_leaves():
            wait = threading.Event().wait
            threading.Thread(target=wait, name="{LEFT}-1", daemon=True).start()
        """
    )
    result = pytester.runpytest_inprocess("-p", "leftovers", "-n", "1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    listed = [line for line in result.outlines if line.startswith(LEFT)]
    assert len(listed) == 1 and listed[0].endswith("::test_leaves")
