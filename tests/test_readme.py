"""The README is short, and its code runs with what `pip install` of the core brings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from core_only import hide_all_but_core

README = Path(__file__).parents[1] / "README.md"
LINES = 150
CODE = 15


def code() -> list[str]:
    text = README.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_readme_is_short() -> None:
    """At most 150 lines, of which the first example takes at most fifteen that are not empty."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LINES
    assert len([line for line in code()[0].splitlines() if line.strip()]) <= CODE


def test_readme_begins_with_what_one_needs() -> None:
    """What it is, a picture, the two commands, how to install and code stand before all else."""
    first, _, _ = README.read_text(encoding="utf-8").partition("\n## ")
    for part in ("docs/spike.png", "make demo", "make test", "pip install", "```python"):
        assert part in first


@pytest.mark.slow
def test_readme_code_runs_with_the_core_alone(tmp_path: Path) -> None:
    """All ```python blocks run in a new interpreter, and name the broken sample of the example."""
    script = tmp_path / "readme.py"
    script.write_text(hide_all_but_core() + "\n\n".join(code()), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "batch 43 of epoch 0" in done.stdout and "sample_id=700" in done.stdout
