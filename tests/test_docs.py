"""What README and docs say is so: code runs, commands exist, tables and the API page are whole."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from core_only import hide_all_but_core

import gradtrace
from gradtrace.cli.app import app
from gradtrace.records import EVENT_TYPES, ClipFinding

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
GOES_ON = "goes on after the first block of the [Quickstart](quickstart.md)"
PUBLIC_MODULES = (
    *("exporter", "exporters", "metrics", "monitoring", "plots", "records", "sampling", "testing"),
)


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def code_of(page: Path) -> str:
    """A page's Python as a reader would paste it, after that of the page it goes on from."""
    parts = blocks(page, "python")
    if GOES_ON in page.read_text(encoding="utf-8").replace("\n", " "):
        parts.insert(0, blocks(DOCS / "quickstart.md", "python")[0])
    return "\n\n".join(parts)


def needs(page: Path) -> list[str]:
    """The optional packages that a page says its code needs, in a comment."""
    found = re.search(r"<!-- needs: (.*) -->", page.read_text(encoding="utf-8"))
    return found[1].split() if found else []


def is_missing(module: str) -> bool:
    """Whether an optional package is not here; where CI is set it must be."""
    return importlib.util.find_spec(module) is None and not os.environ.get("CI")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem != "quickstart"))
        for page in PAGES
        if code_of(page)
    ],
)
def test_code_runs(page: Path, tmp_path: Path) -> None:
    """A page's Python runs in order in one new interpreter, with the packages that it names."""
    wanted = needs(page)
    if missing := [name for name in wanted if is_missing(name)]:
        pytest.skip(f"{page.name} needs {', '.join(missing)}")
    script = tmp_path / "page.py"
    code = code_of(page) if wanted else hide_all_but_core() + code_of(page)
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def commands() -> Iterator[tuple[str, str]]:
    """Text and command line of each shell command, in blocks and in sentences."""
    for path in TEXTS:
        lines = [line for block in blocks(path, "sh") for line in block.splitlines()]
        lines += re.findall(r"`(gradtrace [^`]*)`", path.read_text(encoding="utf-8"))
        for line in lines:
            if words := shlex.split(line, comments=True):
                yield path.name, shlex.join(words)


@pytest.mark.parametrize(("text", "line"), sorted(set(commands())))
def test_commands_exist(text: str, line: str) -> None:
    """Each command line in the texts is one that is understood, options and arguments included."""
    program, *arguments = shlex.split(line)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (word for word in arguments if "=" not in word):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{text}: {line}"
    elif program == "gradtrace":
        understood(arguments)
    elif program == "python":
        assert (ROOT / arguments[0]).exists(), f"{text}: {line}"
    elif program == "pip":
        extras = re.findall(r"\[(.*?)\]", line)
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for extra in (name for names in extras for name in names.split(",")):
            assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), f"{text}: {line}"
    else:
        assert program == "docker", f"{text}: {line}: no check knows this program"


def understood(arguments: list[str]) -> None:
    """Parses a command line without running it; fails for what is wrong with it."""
    command: Any = typer.main.get_command(app)
    while arguments and hasattr(command, "commands"):
        first, *arguments = arguments
        if first.startswith("-"):
            assert first in {option for parameter in command.params for option in parameter.opts}
        else:
            assert first in command.commands
            command = command.commands[first]
    if arguments:  # the command alone stands for its page of help
        command.make_context(command.name, arguments)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Each relative link and picture of a text is there."""
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^":]+)"', text)
    for target in targets:
        assert (path.parent / target).exists(), target


def described(page: str) -> set[str]:
    """What the tables of a page have in code in their first column."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE))


def test_tables_are_whole() -> None:
    """The pages' tables list all alerts, exporters, kinds of events and findings."""
    from gradtrace.exporters import __all__ as exporters
    from gradtrace.monitoring import rules

    assert described("alerts") == {rule.name for rule in rules()}
    assert {name.partition("(")[0] for name in described("exporters")} == set(exporters)
    assert set(EVENT_TYPES) <= described("recorded")
    assert set(re.findall(r'"([a-z ]+)"', str(ClipFinding.__doc__))) == described("clipping")


def documented() -> set[str]:
    """The names that the API page lists, in full."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    short = re.findall(r"^\.\. auto(?:class|function):: (\w+)", text, flags=re.MULTILINE)
    modules = re.findall(r"^\.\. automodule:: ([\w.]+)", text, flags=re.MULTILINE)
    data = re.findall(r"^\.\. py:\w+:: (\w+)\n   :module: ([\w.]+)$", text, flags=re.MULTILINE)
    return (
        {f"gradtrace.{name}" for name in short} | {f"{m}.{name}" for name, m in data} | {*modules}
    )


def test_api_page_lists_every_public_name() -> None:
    """The API page has each name of `gradtrace.__all__`, each public module, and their data."""
    names = documented()
    for name in gradtrace.__all__:
        assert f"gradtrace.{name}" in names
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(f"gradtrace.{module_name}")
        assert module.__name__ in names
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            # Classes and functions come with their module, what has no docstring does not.
            if not inspect.isclass(value) and not inspect.isfunction(value):
                assert f"{module.__name__}.{name}" in names


@pytest.mark.slow
@pytest.mark.skipif(any(map(is_missing, ("sphinx", "myst_parser", "furo"))), reason="no Sphinx")
def test_pages_are_built_without_warnings(tmp_path: Path) -> None:
    """Sphinx builds the pages with warnings as errors, and its index has every public name."""
    from sphinx.util.inventory import InventoryFile

    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    inventory = (tmp_path / "html" / "objects.inv").read_bytes()
    index = {name for kind in InventoryFile.loads(inventory, uri="").data.values() for name in kind}
    for name in gradtrace.__all__:
        assert f"gradtrace.{name}" in index
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(f"gradtrace.{module_name}")
        for name in getattr(module, "__all__", ()):
            assert {f"{module.__name__}.{name}", f"gradtrace.{name}"} & index
    assert "problematic" not in (tmp_path / "html" / "api.html").read_text(encoding="utf-8")
