"""Spikes, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from gradtrace.records import BatchRef, Cause, Clip, LayerRise, Spike
from gradtrace.report.spikes import print_spike, print_spikes

CLEAN = BatchRef(3, 7, 70, (11, 12))
GUILTY = BatchRef(3, 8, 80, ("https://x/[doc]", 77))
BEFORE = BatchRef(3, 6, 60, (99,))
SPIKE = Spike(
    step=1041,
    time=1.0,
    severity="warning",
    message="",
    signal="loss",
    value=9.0,
    baseline=3.0,
    ratio=3.0,
    score=1.5,
    duration=2,
    batches=(CLEAN, GUILTY),
    previous_batches=(BEFORE,),
    suspect="batch",
    suspicion="1 of 2 micro-batches has a high loss",
    blamed=(GUILTY,),
    micro_batch=1,
    lr=(0.1, 0.01),
    clip=Clip("norm", 1.0, 4.0, 1.0, 0.25, True),
    layers=tuple(LayerRise(f"l[{k}]", 1.0, 10.0 - k) for k in range(10)),
    first_forward="l[0]",
    first_backward="l[9]",
    nonfinite=2,
    seconds=0.25,
    causes=(
        Cause("period", "not enough data: 1 spikes so far", None),
        Cause("micro-batch", "one micro-batch of [two] is far above the other", 0.8),
        Cause("update", "the update was large", 0.3),
    ),
)


def printed(print_it: Callable[[Console], None], width: int = 140) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        print_it(console)
    return capture.get()


def row(spike: Spike, width: int = 140) -> list[str]:
    return printed(lambda console: print_spikes([spike], console), width).splitlines()[1].split()


def page(spike: Spike) -> dict[str, str]:
    """The facts of the page by their names."""
    lines = printed(lambda console: print_spike(spike, console), 300).splitlines()
    return {line[:14].strip(): line[14:].strip() for line in lines[1:]}


@pytest.mark.parametrize(
    ("blamed", "suspect", "shown"),
    [
        ((GUILTY,), "batch", ["3", "8"]),
        ((BEFORE,), "update", ["3", "6"]),
        ((GUILTY, CLEAN), "batch", ["3", "8", "+1"]),
        ((), "update", ["-", "-"]),
    ],
)
def test_the_table_names_the_batch_to_blame(
    blamed: tuple[BatchRef, ...], suspect: str, shown: list[str]
) -> None:
    """Not the first one of the step; a dash where no batch is to blame."""
    found = row(replace(SPIKE, blamed=blamed, suspect=suspect))  # type: ignore[arg-type]
    assert found[:5] == ["1,041", "loss", "9", "3", "2"]
    assert found[5 : 5 + len(shown)] == shown
    assert found[5 + len(shown)] == "one"


def test_the_table_has_the_most_likely_cause() -> None:
    """The first that could be judged, as much of it as there is room for; none, no words."""
    assert " ".join(row(SPIKE)[7:]) == "one micro-batch of [two] is far above the other"
    assert row(SPIKE, 90)[-1] == "..."
    assert row(replace(SPIKE, causes=SPIKE.causes[:1]))[7:] == []


def test_the_page_names_the_samples_to_blame_and_no_others() -> None:
    """With the batch they were in, and the step where it is the one before."""
    found = page(SPIKE)
    assert found["blamed"] == "epoch 3 batch 8 (samples https://x/[doc], 77)"
    before = page(replace(SPIKE, blamed=(BEFORE,), suspect="update"))
    assert before["blamed"] == "epoch 3 batch 6 (samples 99), of step 1,040"
    assert page(replace(SPIKE, blamed=()))["blamed"] == "no batch"
    nothing = page(replace(SPIKE, blamed=(), batches=(), previous_batches=()))
    assert "blamed" not in nothing and "made of" not in nothing
    whole = printed(lambda console: print_spike(SPIKE, console), 300)
    assert "11, 12" not in whole and "99" not in whole


def test_the_page_tells_everything_else() -> None:
    """Value, size, suspicion, rates, clipping, layers, bad values, time, and all causes."""
    found = page(SPIKE)
    assert found["value"] == "9, 3 times its baseline 3 (score 1.50), 2 steps"
    assert found["made of"] == "2 batches"
    assert found["suspect"] == "batch: 1 of 2 micro-batches has a high loss"
    assert found["micro-batch"] == "number 1 has the largest loss"
    assert found["learning rate"] == "0.1, 0.01"
    assert found["clipping"] == "4 to 1 (factor 0.25)"
    assert found["layers"].startswith("l[0] x10, l[1] x9,") and found["layers"].endswith("2 more")
    assert found["first"] == "l[0] forward, l[9] backward"
    assert found["non-finite"] == "2 gradient values" and found["step time"] == "0.25 s"
    text = printed(lambda console: print_spike(SPIKE, console))
    assert text.startswith("loss spike at step 1,041")
    assert "  ?  period: not enough data" in text
    assert " 80%  micro-batch: one micro-batch of [two]" in text


def test_many_samples_are_cut() -> None:
    """A dozen of them, and a sign that there are more."""
    many = BatchRef(0, 1, 1, tuple(range(100, 120)))
    found = page(replace(SPIKE, blamed=(many,)))["blamed"]
    assert found.endswith("110, 111, ...)") and "112" not in found
