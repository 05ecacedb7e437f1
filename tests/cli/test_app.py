"""The `gradtrace` command as a whole."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import run

from gradtrace import cli

HEAVY = ("matplotlib", "mlflow", "pandas", "sklearn", "tensorboard", "torch", "wandb")
RECORDED = Path(__file__).parents[1] / "data" / "before-the-move"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "nowhere"), "no run 'nowhere'"),
        (("show", "."), "is no run directory"),
        (("show",), "Missing argument"),
        (("runs", "nowhere"), "no directory 'nowhere'"),
        (("send", "small"), "Missing option"),
        (("send", "small", "--to", "nobody"), "nobody"),
        (("demo", "--steps", "0"), "steps"),
        (("dance",), "No such command"),
    ],
)
def test_wrong_usage(runs: Path, arguments: tuple[str, ...], words: str) -> None:
    """Wrong usage says what was got and exits with 2."""
    code, text = run(*arguments)
    assert code == 2
    # The box that errors stand in may break lines between words.
    assert words in " ".join(text.replace("│", " ").split())


def test_names_command_no_terminal(runs: Path) -> None:
    """Escape sequences in the name of a run are shown, not sent."""
    odd = "red\x1b[31mname"
    shutil.copytree(runs / "small", runs / odd)
    info = json.loads((runs / odd / "run.json").read_text()) | {"name": odd}
    (runs / odd / "run.json").write_text(json.dumps(info))
    for arguments in (("runs",), ("show", odd)):
        code, text = run(*arguments)
        assert code == 0 and "\x1b[31m" not in text
        assert "red?[31mname" in text


def test_versions_are_told() -> None:
    """`gradtrace --version` names those of gradtrace, torch and Python."""
    expected = (
        f"gradtrace {version('gradtrace')}, torch {version('torch')}, "
        f"Python {platform.python_version()}"
    )
    assert run("--version") == (0, expected)


def fresh(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a new interpreter, which lists the modules it has loaded on stderr."""
    code = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from gradtrace.cli import main
main()
"""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--version", "torch"),
        ("--help", "bad-batches"),
        ("runs .", "before-the-move"),
        ("show before-the-move", "80 steps"),
        ("spikes before-the-move", "grad_norm"),
        ("spikes before-the-move --step 51", "spike at step"),
        ("bad-batches before-the-move", '"samples"'),
        ("send before-the-move --to openmetrics metrics.txt", "80 steps"),
        ("monitoring init watching", "docker compose"),
    ],
)
def test_commands_start_light(tmp_path: Path, arguments: str, words: str) -> None:
    """What only reads a recorded run loads neither torch nor any other large package."""
    shutil.copytree(RECORDED, tmp_path / "before-the-move")
    done = fresh(tmp_path, *arguments.split())
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    loaded = set(done.stderr.split())
    assert "gradtrace.cli.app" in loaded
    assert not loaded & set(HEAVY)


def test_the_module_is_the_command() -> None:
    """`python -m gradtrace` does the same."""
    done = subprocess.run(
        [sys.executable, "-m", "gradtrace", "--version"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout.startswith("gradtrace ")


def test_the_commands_know_no_exporter_by_name() -> None:
    """No command imports an exporter: each is made by its entry point."""
    files = list(Path(cli.__file__).parent.glob("*.py"))
    assert len(files) > 5
    for path in files:
        assert "gradtrace.exporters" not in path.read_text(encoding="utf-8"), path.name
