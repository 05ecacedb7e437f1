"""Typical changes touch the files that CONTRIBUTING names, and no others: a toy of each is made.

Each toy is put into a copy of the tree, by inserting a few lines, and used there in a new
interpreter; an exporter needs no copy, for it comes from outside.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TRAINING = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from gradtrace import gradtrace

torch.manual_seed(0)
x = torch.randn(1280, 8)
data = TensorDataset(x, x.sum(1, keepdim=True))
data.tensors[1][700] = 1e3
loader = DataLoader(data, batch_size=16)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

def train(**options):
    with gradtrace(model, loader=loader, run="toy", **options) as trace:
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.huber_loss(model(x), y).backward()
            optimizer.step()
    return trace
"""
"""A training with one spike, at step 43."""


class Tree:
    """A copy of the product that is edited and used; knows which files were touched."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self.work = folder / "work"
        self.work.mkdir()
        self.touched: set[str] = set()
        without = shutil.ignore_patterns("__pycache__")
        for name in ("gradtrace", "exporters", "integrations"):
            shutil.copytree(ROOT / name, self.root / name, symlinks=True, ignore=without)

    def write(self, path: str, text: str) -> None:
        """A new file."""
        assert not (self.root / path).exists()
        self._put(path, text)

    def replace(self, path: str, old: str, new: str) -> None:
        """What stands in the file once becomes something else."""
        text = (self.root / path).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
        self._put(path, text.replace(old, new))

    def insert(self, path: str, before: str, text: str) -> None:
        """Text before what stands in the file once."""
        self.replace(path, before, text + before)

    def _put(self, path: str, text: str) -> None:
        (self.root / path).write_text(text, encoding="utf-8")
        self.touched.add(path)

    def python(self, code: str) -> str:
        """What new code prints, with the copy in place of the product."""
        return python(self.work, code, self.root)

    def obeys_the_law(self) -> None:
        """The copy passes the checks of who imports whom."""
        (self.root / "tests").mkdir()
        for name in ("tests/test_layout.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest"]
        command += [
            "tests/test_layout.py",
            "-k",
            "one_way or cycles or torch or sorted or packaged",
        ]
        run(command, self.root, self.root, ROOT / "tests" / "support")


def run(command: list[str], folder: Path, *paths: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(folder: Path, code: str, *paths: Path) -> str:
    return run([sys.executable, "-c", code], folder, *paths)


def promised(change: str) -> set[str]:
    """The files that CONTRIBUTING names for a change, with their folders."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [row] = re.findall(rf"^\| {re.escape(change)} \* \| (.*) \|$", text, flags=re.MULTILINE)
    return {name for name in re.findall(r"`([\w/.]+)`", row) if "/" in name}


def only(tree: Tree, change: str, names: Mapping[str, str] | None = None) -> None:
    """What was touched is what is promised; `names` says which X was chosen."""
    allowed = {(names or {}).get(name, name) for name in promised(change)}
    assert tree.touched and tree.touched <= allowed


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.slow
def test_a_statistic(tree: Tree) -> None:
    """The root of the mean square of gradients: a name and a formula, and the run log has it."""
    tree.replace("gradtrace/records/tables.py", '"nonfinite")\n', '"nonfinite", "rms")\n')
    path = "gradtrace/measure/rows.py"
    for column, place in (("MAX", 7), ("MIN", 6)):
        tree.replace(
            path, f"out[:, {place}] = rows[:, {column}]", f"out[:, {place + 1}] = rows[:, {column}]"
        )
    tree.insert(
        path, "        if with_range:\n", "        out[:, 6] = rows[:, NORM] / np.sqrt(n)\n"
    )
    only(tree, "a statistic of layers")
    code = f"""{TRAINING}
import numpy as np
from gradtrace import load_run
trace = train()
last = trace.steps[-1].gradients
assert np.allclose(last.column("rms"), last.column("norm") / np.sqrt([8, 1]))
kept = load_run(trace.path).gradients.column("rms").to_numpy()
assert np.array_equal(kept[-2:], last.column("rms"))
old = load_run({str(ROOT / "tests/data/before-the-move")!r})
assert old.gradients.num_rows and list(old.records())
print("kept")
"""
    assert tree.python(code) == "kept\n"
    tree.obeys_the_law()


@pytest.mark.slow
def test_a_cause(tree: Tree) -> None:
    """Spikes at steps that are odd numbers: a function, named in the list of its file."""
    path = "gradtrace/detect/spikes/causes_in_data.py"
    tree.insert(
        path,
        "TESTS: tuple[CauseTest, ...] = (",
        """def odd(case: Case) -> Iterator[Cause]:
    if case.spike.step % 2:
        yield Cause("odd", f"step {case.spike.step} is an odd number", 0.6)


""",
    )
    tree.replace(path, "TESTS: tuple[CauseTest, ...] = (", "TESTS: tuple[CauseTest, ...] = (odd, ")
    only(tree, "a cause of spikes")
    code = f"""{TRAINING}
for spike in train().spikes:
    print(spike.step, *[cause.message for cause in spike.causes if cause.kind == "odd"])
"""
    assert "43 step 43 is an odd number\n" in tree.python(code)
    tree.obeys_the_law()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_figure(tree: Tree) -> None:
    """The norms of a run: a file with a function, named in the room's list."""
    tree.write(
        "gradtrace/plots/norms.py",
        '''"""The gradient norms of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtrace.runlog.reader import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def norms_figure(run: Run) -> Figure:
    """The gradient norm of each step."""
    from matplotlib.figure import Figure

    figure = Figure()
    axis = figure.add_subplot()
    axis.plot(run.steps.column("step").to_numpy(), run.steps.column("grad_norm").to_numpy())
    return figure
''',
    )
    rooms = "gradtrace/plots/__init__.py"
    tree.insert(
        rooms, "from gradtrace.plots.spike", "from gradtrace.plots.norms import norms_figure\n"
    )
    tree.replace(rooms, "__all__ = [", '__all__ = ["norms_figure", ')
    only(tree, "a figure", {"gradtrace/plots/X.py": "gradtrace/plots/norms.py"})
    code = f"""{TRAINING}
from gradtrace import load_run
from gradtrace.plots import norms_figure
norms_figure(load_run(train().path)).savefig("norms.png")
"""
    tree.python(code)
    assert (tree.work / "norms.png").read_bytes().startswith(b"\x89PNG")
    tree.obeys_the_law()


@pytest.mark.slow
def test_a_command(tree: Tree) -> None:
    """`gradtrace count RUN`: a file with a function, named where the commands are put together."""
    tree.write(
        "gradtrace/cli/count.py",
        '''"""`gradtrace count`."""

from __future__ import annotations

import typer

from gradtrace.cli.arguments import RunArgument, load


def count(run: RunArgument) -> None:
    """Count the steps of a run."""
    typer.echo(load(run).steps.num_rows)
''',
    )
    path = "gradtrace/cli/app.py"
    tree.insert(path, "from gradtrace.cli.demo", "from gradtrace.cli.count import count\n")
    tree.insert(path, "app.command()(demo)", "app.command()(count)\n")
    only(tree, "a command", {"gradtrace/cli/X.py": "gradtrace/cli/count.py"})
    tree.python(f"{TRAINING}\ntrain()")
    command = [sys.executable, "-m", "gradtrace", "count"]
    assert run([*command, "toy"], tree.work, tree.root) == "80\n"
    assert "Count the steps of a run." in run([*command, "--help"], tree.work, tree.root)
    tree.obeys_the_law()


EXPORTER = '''
"""Writes a line for each step; knows nothing of gradtrace."""


class Toy:
    name = "toy"

    def __init__(self, path="toy.txt"):
        self.path = path

    def open(self, run):
        self.file = open(self.path, "a")

    def export(self, records):
        steps = [record.step for record in records if hasattr(record, "grad_norm")]
        self.file.writelines(f"{step}\\n" for step in steps)

    def close(self):
        self.file.close()
'''


@pytest.mark.slow
def test_an_exporter(tmp_path: Path) -> None:
    """A class with three methods and an entry point: a trace takes it by name, and so does send."""
    packages = tmp_path / "site-packages"
    info = packages / "toy_exporter-1.0.dist-info"
    info.mkdir(parents=True)
    (packages / "toy_exporter.py").write_text(EXPORTER, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-exporter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gradtrace.exporters]\ntoy = toy_exporter:Toy\n")
    python(tmp_path, f"{TRAINING}\ntrain(exporters=['toy'])", ROOT, packages)
    lines = "".join(f"{step}\n" for step in range(80))
    assert (tmp_path / "toy.txt").read_text() == lines
    send = [sys.executable, "-m", "gradtrace", "send", "toy", "--to", "toy"]
    assert "0 steps" in run(send, tmp_path, ROOT, packages)
    assert "80 steps" in run([*send, "--again", "other.txt"], tmp_path, ROOT, packages)
    assert (tmp_path / "other.txt").read_text() == lines
