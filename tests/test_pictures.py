"""tools/pictures.py says what it lacks before it trains anything, and makes the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pictures(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the tool where no program is to be found."""
    command = [sys.executable, str(ROOT / "tools" / "pictures.py"), "--to", str(folder)]
    return subprocess.run(
        [*command, *arguments],
        env={"PATH": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_names_what_is_missing(tmp_path: Path) -> None:
    """Without Chromium and servers it exits with 1, and names each program and picture."""
    done = pictures(tmp_path, "alerts", "histograms")
    assert done.returncode == 1, done.stderr
    alerts, histograms = done.stdout.splitlines()
    assert alerts.startswith("pictures: prometheus.png, alerts.png cannot be made without")
    assert all(name in alerts for name in ("chromium", "the program prometheus", "alertmanager"))
    assert histograms.startswith("pictures: histograms.png") and "chromium" in histograms
    assert not list(tmp_path.iterdir())


def test_refuses_an_unknown_picture(tmp_path: Path) -> None:
    """A picture that does not exist is an error that lists those that do."""
    done = pictures(tmp_path, "nope")
    assert done.returncode == 2
    assert "'nope'" in done.stderr and "spike, prometheus, alerts, mlflow" in done.stderr
