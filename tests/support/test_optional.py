"""What is not installed is skipped, with its reason; in CI it fails."""

from __future__ import annotations

from pathlib import Path

import optional
import pytest

ABSENT = "no_such_package"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Two files of tests, of which one needs a package that is not there."""
    monkeypatch.setattr(optional, "absent", lambda: frozenset({ABSENT}))
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile(
        test_needs=f"from {ABSENT}.part import name\n\ndef test_one(): pass",
        test_free="def test_two(): pass",
    )
    return pytester


def test_a_file_is_skipped_with_its_reason(run: pytest.Pytester) -> None:
    """The file is one skipped entry that says what is missing; others run."""
    result = run.runpytest_inprocess("-p", "optional", "-rs")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED*test_needs.py: {ABSENT} not installed"])


def test_ci_must_have_everything(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """In CI the import itself fails."""
    monkeypatch.setenv("CI", "true")
    result = run.runpytest_inprocess("-p", "optional")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("the server is not installed", pytest.ExitCode.TESTS_FAILED),
        ("could not import 'pandas'", pytest.ExitCode.TESTS_FAILED),
        ("this machine has no ::1", pytest.ExitCode.OK),
    ],
)
def test_ci_skips_nothing_for_want_of_a_package(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, reason: str, status: int
) -> None:
    """In CI what was skipped because it is not installed fails the run and is listed."""
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(f'import pytest\n\ndef test_one(): pytest.skip("{reason}")')
    result = pytester.runpytest_inprocess("-p", "optional")
    assert result.ret == status
    result.assert_outcomes(skipped=1)
    listed = [line for line in result.outlines if "::test_one: " in line and reason in line]
    assert len(listed) == (status != pytest.ExitCode.OK)


def test_only_what_is_imported_at_the_top_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import inside a test, or of a package that is there, skips no file."""
    monkeypatch.setattr(optional, "absent", lambda: frozenset({"one", "two"}))
    path = tmp_path / "test_it.py"
    path.write_text("import ast, one.part\ndef test(): import two\n", encoding="utf-8")
    assert optional.wanted(path, []) == ["one"]
    path.write_text("import ast\ndef test(): import two\n", encoding="utf-8")
    assert optional.wanted(path, []) == []


def test_what_helpers_import_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through as many of them as there are, also when they import each other."""
    monkeypatch.setattr(optional, "absent", lambda: frozenset({"one", "two"}))
    path = tmp_path / "test_it.py"
    path.write_text("from first import name\n", encoding="utf-8")
    (tmp_path / "first.py").write_text("import second, two\n", encoding="utf-8")
    (tmp_path / "second.py").write_text("import first\nfrom one.x import y\n", encoding="utf-8")
    assert optional.wanted(path, [tmp_path]) == ["one", "two"]
    assert optional.wanted(path, []) == []
