"""A spike's samples: ranked, kept, read back."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradtrace import Spike
from gradtrace.attribution.suspects import (
    Suspects,
    SuspectSample,
    _far,
    rank,
    read_suspects,
    save_suspects,
)

STORED = Path(__file__).parents[1] / "data" / "before-the-move"
SPIKE = Spike(
    step=7, time=1.0, severity="warning", message="", signal="loss",
    value=9.0, baseline=3.0, ratio=3.0, score=1.5,
)  # fmt: skip


def test_samples_are_ranked_by_the_larger_of_two_ratios() -> None:
    """Of loss and gradient norm, each relative to its median; a value that is not finite leads."""
    ids = ("a", "b", "c", "d", "e")
    losses = [1.0, 1.0, 8.0, 1.0, 0.5]
    norms = [2.0, 30.0, 2.0, math.nan, 1.0]
    found = rank(SPIKE, ids, losses, norms)
    assert (found.step, found.signal, len(found)) == (7, "loss", 5)
    assert [sample.sample_id for sample in found] == ["d", "b", "c", "a", "e"]
    b, c = found[1], found[2]
    assert (b.loss, b.grad_norm, b.loss_ratio, b.norm_ratio) == (1.0, 30.0, 1.0, 15.0)
    assert (c.loss_ratio, c.norm_ratio, c.stands_out) == (8.0, 1.0, True)
    assert [sample.stands_out for sample in found] == [True, True, True, False, False]


def test_equal_samples_keep_their_order() -> None:
    """Nobody stands out among equals."""
    found = rank(SPIKE, (3, 1, 2), [1.0] * 3, [2.0] * 3)
    assert [sample.sample_id for sample in found] == [3, 1, 2]
    assert not any(sample.stands_out for sample in found)


def test_kept_suspects_read_back(tmp_path: Path) -> None:
    """NaN and Inf survive, and a line torn by a kill is left out."""
    samples = (SuspectSample("a", math.inf, 1.0, math.inf, 1.0, True),)
    found = Suspects(3, "loss", samples)
    save_suspects(tmp_path, found)
    nan = Suspects(4, "loss", (SuspectSample(1, math.nan, 1.0, math.inf, 1.0, True),))
    save_suspects(tmp_path, nan)
    with (tmp_path / "suspects.jsonl").open("a") as file:
        file.write('{"step": 5, "sig')
    first, second = read_suspects(tmp_path)
    assert first == found
    assert second.step == 4 and math.isnan(second[0].loss)


def test_no_file_no_suspects(tmp_path: Path) -> None:
    """A run of which nothing was measured."""
    assert read_suspects(tmp_path) == []


@pytest.mark.parametrize(
    ("ratios", "far"),
    [
        # Narrow others: five deviations and twice the median are enough, for several at once.
        ([0.99, 1.0, 1.01, 1.0, 2.1, 2.2], [4, 5]),
        # Not twice the median, however narrow.
        ([0.99, 1.0, 1.01, 1.0, 1.9], []),
        # Wide others: 46 times the median is alone, 4 times the next one.
        ([0.01, 0.05, 0.2, 1.0, 5.0, 8.0, 46.0], [6]),
        # Not 4 times the next one: it could be one of them.
        ([0.01, 0.05, 0.2, 1.0, 5.0, 15.0, 46.0], []),
        # Only the largest may be alone.
        ([0.01, 0.05, 0.2, 1.0, 5.0, 21.0, 90.0], [6]),
        ([0.2, 1.0, 1.8], []),
        ([1.0], []),
        ([0.01, 1.0, 20.0, math.inf], [3]),
    ],
)
def test_a_sample_stands_out_by_the_spread_or_all_alone(
    ratios: list[float], far: list[int]
) -> None:
    """Five deviations above the others, or 4 times the next one; twice the median in any case."""
    for order in (1, -1):
        found = np.flatnonzero(_far(np.asarray(ratios[::order])))
        places = found if order == 1 else len(ratios) - 1 - found
        assert sorted(places.tolist()) == far


def test_what_reads_a_run_needs_no_torch() -> None:
    """Suspects, bad samples, skipping and spike files load neither torch nor pandas."""
    code = (
        "import sys\n"
        "from gradtrace import SkipBatches, SkipSamples, SpikeFiles, Suspects, find_bad\n"
        "from gradtrace.attribution.suspects import read_suspects\n"
        f"assert find_bad({str(STORED)!r}).spikes == 4\n"
        "SkipSamples(range(3), [1]); SpikeFiles('spikes')\n"
        "print(*{'pandas', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
