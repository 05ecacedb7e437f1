"""A W&B run's file, read by W&B's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from patience import patience


class File:
    """What is found in a run's file."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        tool = Path(sys.executable).with_name("wandb")
        command: list[str | Path] = [tool, "leet", "inspect", "--json", path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
        assert done.returncode == 0, done.stderr
        self.records = [json.loads(line) for line in done.stdout.splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self.records if record["type"] == kind]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history, in order."""
        return [entry["item"] for entry in self.of("history")]

    @property
    def steps(self) -> dict[int, dict[str, Any]]:
        """The rows that the exporter logged, by step; fails when one is there twice."""
        rows = [row for row in self.rows if "gradtrace/loss" in row]
        steps = {int(row["gradtrace/step"]): row for row in rows}
        assert len(steps) == len(rows), "a step is there twice"
        return steps

    @property
    def summary(self) -> dict[str, Any]:
        """The summary as it is at the end."""
        values: dict[str, Any] = {}
        for entry in self.of("summary"):
            values |= entry["update"]
        return values

    @property
    def run(self) -> dict[str, Any]:
        """The run's own record."""
        found: dict[str, Any] = self.of("run")[0]
        return found

    @property
    def config(self) -> dict[str, Any]:
        return {k: v for k, v in self.run["config"]["update"].items() if k != "_wandb"}

    def spikes(self) -> list[dict[str, Any]]:
        """The table of spikes."""
        key = "gradtrace/spike_table.path"
        [path] = [row[key] for row in self.rows if key in row]
        data = json.loads((self.path.parent / "files" / path).read_text())
        return [dict(zip(data["columns"], row, strict=True)) for row in data["data"]]


def file_of(run: Any) -> File:
    return File(run.settings.sync_file)
