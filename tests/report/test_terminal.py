"""A run's summary and lists of runs, as a terminal shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from gradtrace.report.summary import ClipSummary, LayerShare, LossSummary, Summary
from gradtrace.report.terminal import duration, number, plain, print_runs, print_summary
from gradtrace.runlog.status import RunSummary

SUMMARY = Summary(
    name="base[1]",
    path=Path("runs/base[1]"),
    status="ended by KeyError",
    steps=2000,
    seconds=125.0,
    loss=LossSummary(first=5.0, last=math.nan, lowest=0.025, lowest_step=1999),
    percentiles={50: 1.0, 95: 12.345},
    clipping=ClipSummary(
        calls=2000, clipped=500, fraction=0.25, coefficient=0.5, longest_streak=7, threshold=1.0
    ),
    nonfinite_steps=3,
    skipped_steps=1,
    discarded=3,
    layers=(LayerShare("fc[1].weight", 3.0, 0.75), LayerShare("fc[1].bias", 1.0, 0.25)),
    events={"nonfinite": 3, "spike": 12},
    notes=("no [loss] was seen\x1b[31m",),
    overhead=0.2,
    overhead_ratio=0.0016,
    advice=("look at [layer]",),
)


def printed(print_it: Callable[[Console], None]) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        print_it(console)
    return capture.get()


def test_a_summary_has_its_numbers() -> None:
    """Loss, norms, clipping, what was not finite, events and overhead, in plain digits."""
    text = printed(lambda console: print_summary(SUMMARY, console))
    for part in (
        "ended by KeyError, 2,000 steps in 2 min 5 s",
        "5 first, nan last, 0.025 lowest (step 1,999)",
        "1 p50, 12.35 p95",
        "500 of 2,000 steps (25.0%) at 1, median factor 0.5, at most 7 in a row",
        "3 steps",
        "1 steps, by the AMP scaler",
        "the gradients of 3 backwards, by the loop",
        "3 nonfinite, 12 spike",
        "0.20 s (0.16% of the run)",
    ):
        assert part in text, part


def test_users_names_are_shown_as_they_are() -> None:
    """Brackets are no markup, and no control character reaches the terminal."""
    text = printed(lambda console: print_summary(SUMMARY, console))
    for part in ("base[1]", "fc[1].weight", "no [loss] was seen?[31m", "look at [layer]"):
        assert part in text
    assert "\x1b" not in text
    assert plain("a\nb\tc") == "a\nb?c"


def test_only_the_largest_layers_are_listed() -> None:
    """With how many more there are."""
    text = printed(lambda console: print_summary(SUMMARY, console, layers=1))
    assert "75.0%" in text and "fc[1].bias" not in text and "and 1 more" in text
    assert "more" not in printed(lambda console: print_summary(SUMMARY, console, layers=2))


def test_what_was_not_recorded_has_no_line() -> None:
    """No loss, norms, clipping, events or overhead; nothing skipped and nothing thrown away."""
    nothing = replace(
        SUMMARY, loss=None, percentiles={}, clipping=None, skipped_steps=0, discarded=0, layers=(),
        events={}, notes=(), advice=(), overhead_ratio=math.nan,
    )  # fmt: skip
    lines = printed(lambda console: print_summary(nothing, console)).splitlines()
    assert [line.split()[0] for line in lines] == ["base[1]", "non-finite"]


def test_a_list_of_runs() -> None:
    """Name, steps and status of each, in the order given."""
    runs = [
        RunSummary("b[old]", Path("b"), 0.0, "killed", 1234),
        RunSummary("a", Path("a"), 1e9, "running", 0),
    ]
    head, *lines = printed(lambda console: print_runs(runs, console)).splitlines()
    assert head.split() == ["run", "started", "steps", "status"]
    assert [line.split()[0] for line in lines] == ["b[old]", "a"]
    assert [line.split()[-2:] for line in lines] == [["1,234", "killed"], ["0", "running"]]
    assert lines[0].split()[1] in ("1969-12-31", "1970-01-01")


def test_durations_and_numbers() -> None:
    """Durations are told in the unit a person would choose, numbers in four digits."""
    assert [duration(s) for s in (0.25, 119.0, 125.0, 7300.0)] == [
        "0.2 s",
        "119.0 s",
        "2 min 5 s",
        "2 h 1 min",
    ]
    assert [number(x) for x in (1234.56, 0.00012346, math.inf)] == ["1235", "0.0001235", "inf"]
