"""The shape of the source tree: who imports whom, what is packaged, what stays out of the core."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import patience

ROOT = Path(__file__).parents[1]
LINKS = ("exporters", "integrations")

LAW: dict[str, str] = {
    "records": "",
    "sampling": "",
    "guard": "",
    "thresholds": "",
    "exporter": "records",
    "testing": "records",
    "measure": "records sampling",
    "taps": "measure",
    "handover": "measure records sampling",
    "collect": "guard handover measure records sampling taps",
    "assemble": "guard handover measure records",
    "detect": "records thresholds",
    "runlog": "records",
    "pipeline": "exporter records runlog.atomic",
    "metrics": "detect.clipping records thresholds",
    "exporters": "exporter metrics pipeline.redact plots.curves records runlog.status thresholds",
    "analysis": "records",
    "attribution": "analysis detect.spikes records runlog",
    "plots": "attribution records runlog thresholds",
    "report": "detect records runlog thresholds",
    "monitoring": "metrics thresholds",
    "session": (
        "assemble attribution collect detect exporter guard handover measure pipeline records "
        "runlog sampling"
    ),
}
"""What each room may import of gradtrace besides itself; `cli`, `demo` and `integrations`, which
stand on top of all, may import anything, and nobody imports them."""

ON_TOP = ("gradtrace.__main__", "gradtrace.cli", "gradtrace.demo", "gradtrace.integrations")

WITHOUT_TORCH = tuple(
    f"gradtrace.{room}"
    for room in (
        *("detect", "exporter", "exporters", "metrics", "monitoring", "pipeline", "plots"),
        *("records", "report", "runlog", "sampling", "testing", "thresholds"),
    )
)
"""Rooms that know nothing of tensors."""

OPTIONAL = (
    "grafana_foundation_sdk",
    "matplotlib",
    "mlflow",
    "opentelemetry",
    "prometheus_client",
    "rich",
    "sklearn",
    "tensorboard",
    "typer",
    "wandb",
)

UNTESTED: dict[str, str] = {"gradtrace.__main__": "tests/cli runs it"}
"""Modules that need no test of their name, and why."""


def modules() -> Iterator[tuple[str, Path]]:
    """All modules by the names users import them under."""
    for top, package in (("gradtrace", "gradtrace"), *((x, f"gradtrace.{x}") for x in LINKS)):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            # Newer Pythons do not follow the links, older ones would list their files twice.
            if top != "gradtrace" or parts[0] not in LINKS:
                yield ".".join((package, *(p for p in parts if p != "__init__"))), path


MODULES = dict(modules())


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions and `if TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} is a relative import"
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full in MODULES else module


def below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def fresh_python(code: str) -> str:
    """What a new interpreter prints for this code."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def internals(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each use of a private part of torch."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            if re.match(r"torch\b", name) and re.search(r"\._(?!_)", name):
                yield node.lineno, name


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module: str) -> None:
    """A module imports only what the law allows its room, and nothing imports what is on top."""
    if module == "gradtrace" or below(module, ON_TOP):
        return
    room = module.split(".")[1]
    allowed = tuple(f"gradtrace.{name}" for name in (room, *LAW[room].split()))
    for name in imports(MODULES[module]):
        assert not below(name, ("gradtrace",)) or below(name, allowed), (
            f"{module} must not import {name}: its room may import {LAW[room]}"
        )


def test_no_import_cycles() -> None:
    """The graph of imports between modules has an order."""
    graph = {
        module: {name for name in imports(path) if name in MODULES} - {module}
        for module, path in MODULES.items()
    }
    graph["gradtrace"] = set()  # the front door, which nobody inside uses
    while graph:
        leaves = {module for module, uses in graph.items() if not uses & graph.keys()}
        assert leaves, f"cycle among: {sorted(graph)}"
        graph = {module: uses for module, uses in graph.items() if module not in leaves}


def test_only_taps_touch_torch_internals() -> None:
    """Private parts of torch are used in taps only, and `torch._foreach_*` in measure."""
    for module, path in MODULES.items():
        for line, name in internals(path):
            allowed = below(module, ("gradtrace.taps",)) or (
                below(module, ("gradtrace.measure",)) and name.startswith("torch._foreach_")
            )
            assert allowed, f"{module}:{line} uses {name}"


def test_records_and_detectors_know_no_torch() -> None:
    """Records, metrics, detectors, run log, pipeline and exporters do not import torch."""
    for module, path in MODULES.items():
        if below(module, WITHOUT_TORCH):
            assert not any(below(name, ("torch",)) for name in imports(path)), module


@pytest.mark.parametrize("package", ["gradtrace", "exporters", "integrations"])
def test_public_names_are_sorted(package: str) -> None:
    """A package's `__init__` has an `__all__`, sorted and without duplicates."""
    path = ROOT / package / "__init__.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if ast.unparse(target) == "__all__":
            names = ast.literal_eval(node.value)
            assert names == sorted(set(names))
            return
    pytest.fail(f"{package}/__init__.py has no __all__")


def test_importing_the_core_loads_nothing_optional() -> None:
    """`import gradtrace` loads no exporter, no integration and no optional dependency."""
    loaded = set(fresh_python("import gradtrace, sys; print(*sys.modules)").split())
    banned = (*(f"gradtrace.{link}" for link in LINKS), "gradtrace.cli.app", "gradtrace.demo")
    assert not [name for name in loaded if below(name, banned)]
    # torch loads some of these itself where they are installed.
    by_torch = set(fresh_python("import torch.utils.data, sys; print(*sys.modules)").split())
    assert not [name for name in loaded - by_torch if below(name, OPTIONAL)]


def test_public_names_exist() -> None:
    """Every name in `gradtrace.__all__` can be imported."""
    fresh_python("import gradtrace\nfor name in gradtrace.__all__: getattr(gradtrace, name)")


def test_every_package_is_packaged() -> None:
    """Each folder with Python files is in pyproject's list of packages, and nothing else is."""
    found = {
        module if path.name == "__init__.py" else module.rpartition(".")[0]
        for module, path in MODULES.items()
    }
    listed = pyproject()["tool"]["setuptools"]["packages"]
    assert listed == sorted(found)


@pytest.mark.parametrize("name", LINKS)
def test_links_show_the_packages(name: str) -> None:
    """`gradtrace/exporters` and `gradtrace/integrations` are links to the folders at the top."""
    link = ROOT / "gradtrace" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


def test_no_module_hides_the_function() -> None:
    """There is no module `gradtrace.gradtrace`, which would replace the function on import."""
    assert "gradtrace.gradtrace" not in MODULES


def places_of_test(module: str) -> tuple[Path, ...]:
    """Where the test of a module's name may stand.

    What makes up a package of `exporters` may be tested beside its neighbours, and the package's
    `exporter.py` under the package's name.
    """
    _, *rooms, stem = module.split(".")
    name = stem.lstrip("_")
    places = [(rooms, name)]
    if rooms[:1] == ["exporters"] and len(rooms) > 1:
        places += [(rooms[:1], name)]
        places += [(rooms[:1], rooms[1])] if name == "exporter" else []
    return tuple(Path(ROOT, "tests", *folders, f"test_{name}.py") for folders, name in places)


@pytest.mark.parametrize("module", [m for m, p in MODULES.items() if p.name != "__init__.py"])
def test_each_module_has_a_test_of_its_name(module: str) -> None:
    """`gradtrace/<room>/X.py` is tested by `tests/<room>/test_X.py`, or a list says why not."""
    has_test = any(path.is_file() for path in places_of_test(module))
    if module in UNTESTED:
        assert not has_test, f"{module} has a test: take it out of UNTESTED"
    else:
        assert has_test, (
            f"no test of {module}: expected {places_of_test(module)[0].relative_to(ROOT)}"
        )


def test_the_list_names_modules_that_exist() -> None:
    """No module that is gone stands in the list of what has no test."""
    assert UNTESTED.keys() <= MODULES.keys()


def test_tests_say_what_they_prove() -> None:
    """Each test has a docstring: the sentence it proves."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_no_machine_in_the_tree() -> None:
    """No file names a home or a work directory of some machine, or a registry."""
    paths = re.compile(
        r"(?<![\w.])/(?:home|root|Users|work)/[\w.]|/site-packages/|https?://[\w.-]*pypi"
    )
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            found = paths.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{name}: {found}"


@pytest.mark.slow
def test_wheel_holds_every_module(tmp_path: Path) -> None:
    """A wheel holds all modules under the names that users import, and the typing marker."""
    pytest.importorskip("setuptools", minversion="77")
    command = "wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir"
    subprocess.run(
        [sys.executable, "-m", "pip", *command.split(), str(tmp_path), "."],
        cwd=_copy_of_the_tree(tmp_path / "tree"),
        check=True,
        timeout=patience(120),
    )
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for module, path in MODULES.items():
        stem = module.replace(".", "/")
        expected = f"{stem}/__init__.py" if path.name == "__init__.py" else f"{stem}.py"
        assert expected in names
    assert "gradtrace/py.typed" in names
    assert "gradtrace/monitoring/templates/dashboard.json" in names
    assert "gradtrace/exporters/console.py" in names
    assert not [name for name in names if name.startswith(("tests/", "exporters/", "examples/"))]


def _copy_of_the_tree(target: Path) -> Path:
    """What a build needs, elsewhere, so that it leaves nothing behind here."""
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target)
    for name in ("gradtrace", *LINKS):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignored)
    return target
