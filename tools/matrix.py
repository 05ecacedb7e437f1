"""Runs the quick tests with nothing optional installed, on each Python and torch that is at hand.

    python tools/matrix.py            # every Python from 3.11 on, with the pinned torch
    python tools/matrix.py --this     # only the Python that runs this

MATRIX_PYTHON ("3.11 3.13") and MATRIX_TORCH ("2.6.0 2.13.0") name others; what is named and runs
on nothing is a failure. PYTEST_ARGS go to pytest. Environments stay in .matrix/ and are made anew
when pyproject.toml or constraints.txt change. Installing more than MATRIX_MAX_MB (400) for one of
them is left out, and said, but with --this: most builds of torch bring gigabytes of CUDA.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".matrix"
OLDEST = (3, 11)
MOST_MB = 400
NEEDED = ("pytest>=8", "pytest-xdist>=3.6", "setuptools>=77")
"""What the quick tests need besides the package and torch."""


@dataclass(frozen=True)
class Combination:
    """One environment to run in."""

    python: str
    interpreter: Path
    torch: str

    def __str__(self) -> str:
        return f"Python {self.python}, torch {self.torch}"

    @property
    def folder(self) -> Path:
        """Where its environment is."""
        return HOME / f"python{self.python}-torch{self.torch}"


class NotHereError(Exception):
    """A combination that cannot be installed here; the text says why."""


def version_of(interpreter: Path) -> tuple[int, int] | None:
    """The minor version of an interpreter, None for one that does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run(
            [interpreter, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        major, minor = map(int, done.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return major, minor


def candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    """Interpreters that may be there: on the path, and those that pyenv holds."""
    for folder in environment.get("PATH", "").split(os.pathsep):
        if folder and Path(folder).is_dir():
            yield from sorted(
                path for path in Path(folder).iterdir() if re.fullmatch(r"python3\.\d+", path.name)
            )
    pyenv = environment.get("PYENV_ROOT") or Path(environment.get("HOME", ".")) / ".pyenv"
    yield from sorted(Path(pyenv, "versions").glob("*/bin/python"))


def pythons(found: Iterable[Path]) -> dict[str, Path]:
    """The first interpreter that runs of each minor version from the oldest on, oldest first."""
    at_hand: dict[tuple[int, int], Path] = {}
    for path in found:
        version = version_of(path)
        if version is not None and version >= OLDEST:
            at_hand.setdefault(version, path)
    return {f"{major}.{minor}": at_hand[major, minor] for major, minor in sorted(at_hand)}


def pinned(package: str) -> str:
    """The version that constraints.txt has of a package."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        if name == package:
            return version
    raise SystemExit(f"matrix: constraints.txt does not pin {package}")


def pip(interpreter: Path, *arguments: str | Path) -> str:
    """What pip prints; NotHereError with its last line when it fails."""
    command = [interpreter, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise NotHereError(told[-1])
    return done.stdout


def size_of(url: str) -> int:
    """The bytes of a file that pip would install; 0 where that cannot be told."""
    parts = urllib.parse.urlsplit(url)
    try:
        if parts.scheme == "file":
            return Path(urllib.request.url2pathname(parts.path)).stat().st_size
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.headers.get("Content-Length", 0))
    except (OSError, ValueError):
        return 0


def check_size(interpreter: Path, torch: str, most_mb: float) -> None:
    """Raises NotHereError when torch and what it brings are larger than `most_mb`."""
    if most_mb == math.inf:
        return
    report = pip(interpreter, "install", "--dry-run", "--report", "-", f"torch=={torch}")
    urls = [item["download_info"]["url"] for item in json.loads(report)["install"]]
    megabytes = sum(map(size_of, urls)) / 1e6
    if megabytes > most_mb:
        raise NotHereError(
            f"it takes {megabytes:,.0f} MB, more than {most_mb:,.0f}: raise MATRIX_MAX_MB, or "
            "point pip to a CPU build"
        )


def fingerprint(torch: str) -> str:
    """What an environment was made of."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(
        b"\0".join([*parts, torch.encode(), *map(str.encode, NEEDED)])
    ).hexdigest()


def prepare(combination: Combination, most_mb: float) -> Path:
    """The interpreter of an environment that is ready; raises NotHereError."""
    folder, torch = combination.folder, combination.torch
    interpreter, ready = folder / "bin/python", folder / "ready"
    wanted = fingerprint(torch)
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return interpreter
    shutil.rmtree(folder, ignore_errors=True)
    command = [str(combination.interpreter), "-m", "venv", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    try:
        check_size(interpreter, torch, most_mb)
        # Another torch than the pinned one needs other versions of what it brings.
        same = torch == pinned("torch")
        constraints = ["--constraint", "constraints.txt"] if same else []
        pip(interpreter, "install", *constraints, f"torch=={torch}")
        pip(interpreter, "install", *constraints, *NEEDED)
        pip(interpreter, "install", *constraints, "--no-build-isolation", "--editable", ".")
    except NotHereError:
        shutil.rmtree(folder)
        raise
    ready.write_text(wanted, encoding="utf-8")
    return interpreter


def test(interpreter: Path, arguments: Sequence[str]) -> bool:
    """Whether the quick tests pass; what is missing is skipped, for this is not the whole of CI."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTHONPATH")}
    spread = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadfile"]
    command = [str(interpreter), "-m", "pytest", "-q", *spread, "-m", "not slow", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def run(
    combinations: Sequence[Combination], named: Iterable[str], most_mb: float, args: Sequence[str]
) -> bool:
    """Runs them all, tells the outcome of each, and whether all is well.

    It is not when tests fail, when nothing ran, or when something that was named ran nowhere.
    """
    told: list[str] = []
    well = True
    ran: set[str] = set()
    for one in combinations:
        print(f"matrix: {one}", flush=True)
        try:
            interpreter = prepare(one, most_mb)
        except NotHereError as error:
            told.append(f"{one}: left out: {error}")
            continue
        passed = test(interpreter, args)
        well &= passed
        ran |= {one.python, one.torch}
        told.append(f"{one}: {'passed' if passed else 'FAILED'}")
    missing = [name for name in named if name not in ran]
    told += [f"{name} was asked for and ran nowhere" for name in missing]
    if not ran:
        told.append("nothing ran")
    print("\n".join(f"matrix: {line}" for line in told), flush=True)
    return well and bool(ran) and not missing


def main(arguments: Sequence[str]) -> int:
    """Finds out what to run, and runs it."""
    if arguments not in ([], ["--this"]):
        raise SystemExit(f"matrix: {' '.join(arguments)} is not known; expected --this or nothing")
    python_names = os.environ.get("MATRIX_PYTHON", "").split()
    torch_names = os.environ.get("MATRIX_TORCH", "").split()
    at_hand = pythons([Path(sys.executable)] if arguments else candidates(os.environ))
    chosen = {
        name: path for name, path in at_hand.items() if not python_names or name in python_names
    }
    combinations = [
        Combination(name, path, torch)
        for torch in torch_names or [pinned("torch")]
        for name, path in chosen.items()
    ]
    # What .venv was made with has been fetched before, however large it is.
    most_mb = math.inf if arguments else float(os.environ.get("MATRIX_MAX_MB", MOST_MB))
    args = os.environ.get("PYTEST_ARGS", "").split()
    return 0 if run(combinations, [*python_names, *torch_names], most_mb, args) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
