"""The numbers that training is judged by: the table, the functions, and that nobody has others."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from gradtrace import thresholds
from gradtrace.detect.clipfindings import ClipJudge
from gradtrace.detect.clipping import ClippingStats
from gradtrace.metrics.run_summary import RunTotals
from gradtrace.monitoring.rules import rules
from gradtrace.records import Clip, RunInfo, StepRecord
from gradtrace.report.summary import summarize
from gradtrace.runlog.directory import create_run_directory
from gradtrace.runlog.reader import load_run
from gradtrace.runlog.writer import RunLog
from gradtrace.thresholds import (
    CLIPPED_OFTEN,
    NORMS_KEPT,
    clips_too_often,
    never_engages,
    ordinary_norm,
    suggested_clip_norm,
)


def test_the_table_is_that_of_the_constants() -> None:
    """Each has its row, with its value, and there is no other."""
    rows = [line.split("|")[1:-1] for line in str(thresholds.__doc__).splitlines() if "|" in line]
    table = {name.strip(): float(value) for name, value, *_ in rows[2:]}
    assert table == {name: value for name, value in vars(thresholds).items() if name.isupper()}
    assert len(table) == len(rows) - 2
    assert all(cell.strip() for row in rows for cell in row)


def test_clipping_too_often_begins_at_its_share() -> None:
    """That share is too often, less is not."""
    assert clips_too_often(CLIPPED_OFTEN) and clips_too_often(1.0)
    assert not clips_too_often(CLIPPED_OFTEN - 1e-9)


def test_a_suggestion_rests_on_five_norms_beyond_it() -> None:
    """The 95th percentile from 100 norms on, the 99th from 500; bad ones do not count."""
    norms = np.random.default_rng(0).lognormal(size=600)
    assert suggested_clip_norm(norms[:99]) is None
    assert suggested_clip_norm(norms[:100]) == np.percentile(norms[:100], 95)
    assert ordinary_norm(norms[:499]) is None
    assert ordinary_norm(norms[:500]) == np.percentile(norms[:500], 99)
    bad = np.concatenate([[math.nan, math.inf], norms[:99], [-math.inf]])
    assert suggested_clip_norm(bad) is None
    bad = np.concatenate([bad, norms[99:100]])
    assert suggested_clip_norm(bad) == suggested_clip_norm(norms[:100])


def test_only_the_newest_norms_count() -> None:
    """Those of a run's beginning are forgotten after NORMS_KEPT."""
    norms = np.concatenate([np.full(10_000, 100.0), np.ones(NORMS_KEPT)])
    assert suggested_clip_norm(norms) == 1.0
    assert suggested_clip_norm(norms[:-4_000]) == 100.0


def test_a_threshold_of_ten_ordinary_norms_never_engages() -> None:
    """From there on, Inf too; one that is not known is not judged."""
    assert never_engages(10.0, 1.0) and never_engages(math.inf, 1.0)
    assert not never_engages(9.99, 1.0)
    assert not never_engages(math.nan, 1.0)


@pytest.mark.parametrize("share", [0.94, 0.96])
def test_all_rooms_give_the_same_answer(share: float, tmp_path: Path) -> None:
    """Finding, summary of a run, what is sent for comparing runs and `trace.clipping`: whether
    clipping is too often, and the threshold suggested, are the same in all.
    """
    rng = np.random.default_rng(1)
    records = []
    for step in range(200):
        clipped = step % 50 < round(50 * share)
        norm = float(rng.uniform(2.0, 4.0) if clipped else rng.uniform(0.1, 0.9))
        factor = min(1.0, 1.0 / norm)
        clip = Clip("norm", 1.0, norm, norm * factor, factor, clipped)
        records.append(StepRecord(step, float(step), grad_norm=norm, lr=(0.1,), clip=clip))
    judge, stats, totals = ClipJudge(), ClippingStats(), RunTotals()
    found = [finding for record in records for finding in judge.update(record)]
    for record in records:
        stats.update(record)
        totals.update(record)
    path = create_run_directory(tmp_path, "run")
    log = RunLog(path, RunInfo(name="run", started=1.0, path=path))
    log.append(list(records))
    log.close({"status": "finished"})
    advice = summarize(load_run(path)).advice

    suggested = stats.summary().suggested
    assert suggested is not None
    assert totals.values()["gradtrace/suggested_clip_norm"] == suggested
    assert len(found) == len(advice) == clips_too_often(share)
    if found:
        assert found[0].evidence["p95"] == suggested
        assert f"max_norm of {suggested:.3g}, the 95th" in found[0].message
        assert f"95th percentile of 200 norms, {suggested:.3g}," in advice[0]


def test_alerts_ask_the_same_numbers() -> None:
    """Of clipping, of layers and of skipped steps, as PromQL reads them."""
    expressions = {rule.name: rule.expr for rule in rules()}
    for name, value in (
        ("ClippingAlways", thresholds.CLIPPED_OFTEN),
        ("VanishingLayer", thresholds.VANISHING_SHARE),
        ("ExplodingLayer", thresholds.EXPLODING_RATIO),
        ("StepsSkipped", thresholds.SKIPPED_OFTEN),
    ):
        numbers = re.findall(r"(?<![\w.\[])[\d.]+(?:e-\d+)?(?!\w)", expressions[f"Gradtrace{name}"])
        assert value in map(float, numbers)
