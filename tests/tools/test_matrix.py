"""The matrix says what it left out, and fails when what was asked for did not run."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "matrix.py"


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("matrix_tool", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "matrix_tool", module)  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def interpreter(path: Path, version: str) -> Path:
    """A program that calls itself a Python of this version, or does not run at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{f'echo {version}' if version else 'exit 1'}\n")
    path.chmod(0o755)
    return path


def test_pythons_are_found_on_the_path_and_with_pyenv(matrix: Any, tmp_path: Path) -> None:
    """From 3.11 on, one of each version, the path's first; what does not run is not at hand."""
    bin_ = tmp_path / "bin"
    expected = {
        "3.11": interpreter(bin_ / "python3.11", "3 11"),
        "3.13": interpreter(tmp_path / "pyenv/versions/3.13.2/bin/python", "3 13"),
        "3.14": interpreter(tmp_path / "pyenv/versions/3.14.0/bin/python", "3 14"),
    }
    interpreter(bin_ / "python3.10", "3 10")
    interpreter(bin_ / "python3.13", "")
    interpreter(bin_ / "python3.11-config", "3 12")
    interpreter(tmp_path / "pyenv/versions/3.11.9/bin/python", "3 11")
    environment = {"PATH": f"{tmp_path / 'none'}:{bin_}", "PYENV_ROOT": str(tmp_path / "pyenv")}
    found = matrix.pythons(matrix.candidates(environment))
    assert found == expected and list(found) == list(expected)


def test_what_is_pinned_is_read(matrix: Any) -> None:
    """The version of constraints.txt; a package that is not there ends the program."""
    assert matrix.pinned("torch").count(".") == 2
    with pytest.raises(SystemExit, match="does not pin no-such"):
        matrix.pinned("no-such")


def test_large_builds_are_refused(
    matrix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that torch brings counts; the refusal says how much it is and what to do."""
    files = [tmp_path / name for name in ("torch.whl", "cuda.whl")]
    for file in files:
        file.write_bytes(b"0" * 3_000_000)
    install = [{"download_info": {"url": file.as_uri()}} for file in files]
    monkeypatch.setattr(matrix, "pip", lambda *arguments: json.dumps({"install": install}))
    matrix.check_size(tmp_path, "2.6.0", 6.1)
    with pytest.raises(matrix.NotHereError, match="it takes 6 MB, more than 5: raise MATRIX_MAX"):
        matrix.check_size(tmp_path, "2.6.0", 5)
    assert matrix.size_of("file:///no/such/file") == 0


def test_an_environment_is_kept_while_what_made_it_is_the_same(matrix: Any) -> None:
    """Another torch is another environment."""
    assert matrix.fingerprint("2.6.0") == matrix.fingerprint("2.6.0")
    assert matrix.fingerprint("2.6.0") != matrix.fingerprint("2.7.0")


@pytest.mark.parametrize(
    ("outcomes", "named", "well", "told"),
    [
        (["passed"], ["3.11"], True, "torch 2.1.0: passed"),
        (["passed", "FAILED"], [], False, "torch 2.1.1: FAILED"),
        (["passed", "left out"], [], True, "torch 2.1.1: left out: no room"),
        (["passed", "left out"], ["2.1.1"], False, "2.1.1 was asked for and ran nowhere"),
        (["passed"], ["3.99"], False, "3.99 was asked for and ran nowhere"),
        (["left out"], [], False, "nothing ran"),
        ([], [], False, "nothing ran"),
    ],
)
def test_nothing_is_left_out_in_silence(
    matrix: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: Sequence[str],
    named: Sequence[str],
    well: bool,
    told: str,
) -> None:
    """Each combination's outcome is told; what was named has to have run somewhere."""
    combinations = [
        matrix.Combination("3.11", Path("python"), f"2.1.{number}")
        for number in range(len(outcomes))
    ]
    torches = [str(one.torch) for one in combinations]
    by_torch = dict(zip(torches, outcomes, strict=True))

    def prepare(one: Any, most_mb: float) -> str:
        if by_torch[one.torch] == "left out":
            raise matrix.NotHereError("no room")
        return str(one.torch)

    def test(torch: str, arguments: Sequence[str]) -> bool:
        return by_torch[torch] == "passed"

    monkeypatch.setattr(matrix, "prepare", prepare)
    monkeypatch.setattr(matrix, "test", test)
    assert matrix.run(combinations, named, 400.0, []) == well
    assert told in capsys.readouterr().out


def test_a_wrong_argument_ends_the_program(matrix: Any) -> None:
    """Only --this is known."""
    with pytest.raises(SystemExit, match="--that is not known; expected --this"):
        matrix.main(["--that"])
