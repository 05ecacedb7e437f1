"""What a backend must hold of a run, worked out from the run log's tables alone."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from pathlib import Path

from gradtrace import load_run

Series = dict[int, float]


def values_of(path: Path) -> dict[str, Series]:
    """Finite values by key below `gradtrace/` and by step, groups of layers by their norm only."""
    run = load_run(path)
    rows = run.steps.to_pylist()
    found: dict[str, Series] = {
        key: {row["step"]: row[column] for row in rows}
        for key, column in (
            ("step", "step"),
            ("loss", "loss"),
            ("grad_norm", "grad_norm"),
            ("grad_norm_clipped", "norm_after"),
            ("clip/coefficient", "clip_coefficient"),
        )
    }
    found["lr"] = {row["step"]: row["lr"][0] for row in rows}
    for key, column in (("clipped_steps", "clipped"), ("skipped_steps", "skipped")):
        counts = itertools.accumulate(int(bool(row[column])) for row in rows)
        found[key] = {row["step"]: n for row, n in zip(rows, counts, strict=True)}
    clipped = [bool(row["clipped"]) for row in rows]
    found["clip/fraction"] = {
        row["step"]: sum(window := clipped[max(0, at - 99) : at + 1]) / len(window)
        for at, row in enumerate(rows)
    }
    squares: dict[str, Series] = defaultdict(lambda: defaultdict(float))
    for row in run.gradients.to_pylist():
        layer, step = row["layer"], row["step"]
        for metric, column in (("grad_norm", "norm"), ("zero_fraction", "zero_fraction")):
            found.setdefault(f"layers/{layer}/{metric}", {})[step] = row[column]
        squares[layer.split(".")[0]][step] += row["norm"] ** 2
    for row in run.updates.to_pylist():
        key = f"layers/{row['layer']}/update_ratio"
        found.setdefault(key, {})[row["step"]] = row["ratio"]
    for row in run.activations.to_pylist():
        for column in ("max_abs", "zero_fraction"):
            key = f"layers/{row['layer']}/activation_{column}"
            found.setdefault(key, {})[row["step"]] = row[column]
    for group, series in squares.items():
        found.setdefault(
            f"layers/{group}/grad_norm",
            {step: math.sqrt(square) for step, square in series.items()},
        )
    return {
        key: {step: v for step, v in series.items() if v is not None and math.isfinite(v)}
        for key, series in found.items()
    }
