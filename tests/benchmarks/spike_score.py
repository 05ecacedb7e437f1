"""Precision, recall and false alarms of spike rules on the labelled series.

    python tests/benchmarks/spike_score.py [--half tuning]

prints the table of docs/spike-rule.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass

from spike_rules import RIVALS, Rule
from spike_series import FAMILIES, HEIGHTS, MORE, Series, contaminated, healthy, split

from gradtrace import find_spikes

OURS = "gradtrace"
RULES: dict[str, Rule] = {OURS: find_spikes, **RIVALS}


@dataclass
class Score:
    """Counts over some series."""

    hits: int = 0
    misses: int = 0
    false: int = 0
    steps: int = 0

    def add(self, series: Series, flagged: Iterable[int]) -> None:
        """A rule's answer to one series. A spike counts as found at its own step only."""
        found = set(flagged) - series.ignored
        self.hits += len(found & series.spikes)
        self.misses += len(series.spikes - found)
        self.false += len(found - series.spikes)
        self.steps += len(series.values)

    def __add__(self, other: Score) -> Score:
        return Score(
            self.hits + other.hits,
            self.misses + other.misses,
            self.false + other.false,
            self.steps + other.steps,
        )

    @property
    def recall(self) -> float:
        """Share of the spikes that were flagged."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else math.nan

    @property
    def precision(self) -> float:
        """Share of the flags that were spikes; 1 when nothing was flagged."""
        return self.hits / (self.hits + self.false) if self.hits + self.false else 1.0

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.hits / (2 * self.hits + self.misses + self.false)


def score(rule: Rule, series: Iterable[Series]) -> Score:
    """One rule on some series."""
    total = Score()
    for one in series:
        total.add(one, rule(one.values.tolist()))
    return total


def scores(rule: Rule, series: list[Series]) -> dict[tuple[str, float, str], Score]:
    """One rule by family, height and signal."""
    return {
        (family, height, signal): score(
            rule, contaminated([s for s in series if s.signal == signal], family, height)
        )
        for family in FAMILIES
        for height in HEIGHTS
        for signal in ("loss", "grad_norm")
    }


def pooled(
    found: dict[tuple[str, float, str], Score],
    *,
    families: Iterable[str] = FAMILIES,
    heights: Iterable[float] = HEIGHTS,
    signals: Iterable[str] = ("loss", "grad_norm"),
) -> Score:
    """The sum over some cells."""
    total = Score()
    for family in families:
        for height in heights:
            for signal in signals:
                total += found[family, height, signal]
    return total


def table(series: list[Series]) -> str:
    """Markdown: recall / precision by height and signal, F1 by family, false alarms on health."""
    lines = [
        "| rule | loss 1.5x | loss 3x | loss 10x | norm 1.5x | norm 3x | norm 10x | "
        + " | ".join(family.replace("_", " ") for family in FAMILIES)
        + " | false alarms |",
        "|---|" + "---|" * (7 + len(FAMILIES)),
    ]
    for name, rule in RULES.items():
        found = scores(rule, series)
        cells = []
        for signal in ("loss", "grad_norm"):
            for height in (1.5, 3.0, 10.0):
                part = pooled(found, heights=(height,), signals=(signal,))
                cells.append(f"{part.recall:.2f} / {part.precision:.2f}")
        cells += [f"{pooled(found, families=(family,)).f1:.3f}" for family in FAMILIES]
        calm = score(rule, series)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {calm.false} in {calm.steps} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", choices=["tuning", "reporting"], default="reporting")
    tuning, reporting = split(healthy())
    if parser.parse_args().half == "tuning":
        print(table(tuning + healthy(MORE)))
    else:
        print(table(reporting))


if __name__ == "__main__":
    main()
