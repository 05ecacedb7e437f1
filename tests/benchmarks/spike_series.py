"""Labelled series: recorded healthy runs, and the same with spikes put in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradtrace.records import Array

FILE = Path(__file__).with_name("series.npz")
MORE = Path(__file__).with_name("tuning.npz")
HEIGHTS = (1.5, 3.0, 10.0, 100.0)
FAMILIES = ("single", "train", "after_nan", "after_inf", "near_spike", "drift")
NEIGHBOURS = 100
SPIKES = 6
EARLIEST = 100


@dataclass(frozen=True)
class Series:
    """One signal of one run; `spikes` are to be found, `ignored` may be flagged or not."""

    run: str
    signal: str
    values: Array
    spikes: frozenset[int] = frozenset()
    ignored: frozenset[int] = field(default_factory=frozenset)


def healthy(file: Path = FILE) -> list[Series]:
    """The recorded series, a loss and a gradient norm of every run, in the order of recording."""
    with np.load(file) as data:
        return [
            Series(
                name.partition("/")[0],
                name.partition("/")[2],
                np.asarray(data[name], dtype=np.float64),
            )
            for name in data.files
        ]


def split(series: list[Series]) -> tuple[list[Series], list[Series]]:
    """Every second run for tuning, the others for reporting.

    What is tuned on beside it, the same runs with other seeds, is `healthy(MORE)`.
    """
    runs = list(dict.fromkeys(s.run for s in series))
    tuning = set(runs[::2])
    return [s for s in series if s.run in tuning], [s for s in series if s.run not in tuning]


def contaminated(series: list[Series], family: str, height: float) -> Iterator[Series]:
    """Each series with six spikes of `height` times the largest healthy value around them."""
    for number, one in enumerate(series):
        yield contaminate(one, family, height, seed=number)


def contaminate(series: Series, family: str, height: float, seed: int) -> Series:
    """One series with spikes of a family put in; the same seed gives the same places."""
    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    values = series.values.copy()
    if family == "drift":
        factor = 3.0 if seed % 2 else 1 / 3.0
        values *= factor ** np.linspace(0.0, 1.0, len(values))
    calm = values.copy()
    spikes: list[int] = []
    ignored: list[int] = []

    def put(at: int, times: float) -> None:
        around = calm[max(0, at - NEIGHBOURS) : at + NEIGHBOURS + 1]
        values[at] = times * around.max()

    for place in _places(rng, len(values), 2 if family == "train" else SPIKES):
        if family == "train":
            for at in range(place, place + SPIKES // 2):
                put(at, height)
                spikes.append(at)
            continue
        put(place, height)
        spikes.append(place)
        if family in ("after_nan", "after_inf"):
            bad = np.nan if family == "after_nan" else np.inf
            before = place - int(rng.integers(1, 9))
            values[before] = bad
            ignored.append(before)
        elif family == "near_spike":
            before = place - int(rng.integers(2, 40))
            put(before, 100.0)
            ignored.append(before)
    return Series(series.run, series.signal, values, frozenset(spikes), frozenset(ignored))


def _places(rng: np.random.Generator, length: int, count: int) -> list[int]:
    """Places at least 45 steps apart, never within the first hundred steps."""
    room = (length - EARLIEST - 10) // count
    starts = EARLIEST + room * np.arange(count)
    return [int(start) + int(rng.integers(0, room - 45)) for start in starts]
