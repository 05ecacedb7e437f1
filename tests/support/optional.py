"""Pytest plugin: tests of what is not installed are skipped, so that all see it; in CI they fail.

A test file that imports one of OPTIONAL at its top, itself or through its helpers, where that is
not installed, is one skipped entry with its reason. A test that needs one inside says so with
`pytest.importorskip`. Where CI is set everything has to be there: then nothing may be skipped for
want of a package or a program.
"""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from verdict import Verdict

OPTIONAL = (
    "cryptography",
    "google_crc32c",
    "grafana_foundation_sdk",
    "hypothesis",
    "matplotlib",
    "mlflow",
    "opentelemetry",
    "oteltap",
    "pandas",
    "prometheus_client",
    "scipy",
    "sklearn",
    "tensorboard",
    "wandb",
    "yaml",
)
"""What tests import and the package can do without."""

_WANTING = re.compile(r"not installed|could not import")


@functools.cache
def absent() -> frozenset[str]:
    """Which of OPTIONAL are not installed."""
    return frozenset(name for name in OPTIONAL if find_spec(name) is None)


def wanted(path: Path, helpers: Sequence[Path]) -> list[str]:
    """Which absent packages a file imports at its top, or a module in `helpers` that it imports."""
    if not absent():
        return []
    found: set[str] = set()
    seen: set[Path] = set()
    files = [path]
    while files:
        file = files.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        tops = {name.partition(".")[0] for name in _imported(file)}
        found |= tops & absent()
        files += [folder / f"{name}.py" for folder in helpers for name in tops]
    return sorted(found)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


class Wanting(pytest.Module):
    """A test file that cannot be imported here."""

    names: Sequence[str] = ()

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Skips the file as a whole."""
        names = " and ".join(self.names)
        pytest.skip(f"{self.path.name}: {names} not installed", allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """Stands in for a file whose imports are not there; not in CI."""
    names = wanted(module_path, parent.config.getini("pythonpath"))
    if os.environ.get("CI") or not names:
        return None
    wanting: Wanting = Wanting.from_parent(parent, path=module_path)
    wanting.names = names
    return wanting


class Complete(Verdict):
    """Remembers what was skipped though it could have been installed."""

    title = "skipped for want of what has to be there in CI"

    def __init__(self) -> None:
        super().__init__()
        self._skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test."""
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file."""
        self._look(report)

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2]
            if _WANTING.search(reason):
                self._skipped.append(f"{report.nodeid}: {reason}")

    def found(self) -> Iterable[str]:
        """In the order of the tests."""
        return self._skipped


def pytest_configure(config: pytest.Config) -> None:
    """Nothing may be missing in CI."""
    if os.environ.get("CI"):
        config.pluginmanager.register(Complete(), "gradtrace-complete")
