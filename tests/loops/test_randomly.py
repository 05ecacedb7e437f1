"""Loops that nobody wrote: random bodies, each with its account, under both plans."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from account import Account, Use
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import patience
from randomly import Op, Program, Run
from zoo.compare import WORDS, Seen, close, same
from zoo.tracing import PLANS, Tracer, forced

from gradtrace.records import StepRecord

EVERY = st.sampled_from([1, 1, 1, 2, 3])
OPS: dict[str, list[str]] = {
    "draw": ["0", "1"],
    "evaluate": [""],
    "forward": [""],
    "backward": ["", "", "", "0", "2"],
    "clip": ["norm", "value", "each", "infinity"],
    "zero": ["optimizer", "module", "None", "in place", "one by one"],
    "step": ["all", "all", "0", "1"],
    "skip": [""],
    "discard": ["optimizer", "module", "None", "in place"],
    "replace": ["0", "2"],
    "log": [""],
}


@st.composite
def programs(draw: Any) -> Program:
    """Bodies that begin with a batch; the rest is chance, but zeroing at an end is usual."""

    def op(kind: str) -> Op:
        rare = kind in ("skip", "discard", "replace")
        every = draw(st.sampled_from([3, 4, 5])) if rare else draw(EVERY)
        return Op(kind, draw(st.sampled_from(OPS[kind])), every)

    zero = Op("zero", draw(st.sampled_from(OPS["zero"])))
    middle = [op(kind) for kind in draw(st.lists(st.sampled_from(sorted(OPS)), max_size=5))]
    usual = [Op("backward"), *([op("clip")] if draw(st.booleans()) else []), Op("step", "all")]
    at = draw(st.integers(0, len(middle)))
    body = [Op("draw", "0"), *middle[:at], *usual, *middle[at:]]
    body = draw(st.sampled_from([[zero, *body], [*body, zero]]))
    # What is open when a step is closed by hand is a matter of taste: such loops leave nothing.
    plain = not any(op.kind in ("skip", "discard", "backward") for op in middle)
    return Program(
        tuple(body),
        optimizers=draw(st.sampled_from([1, 1, 2])),
        loaders=draw(st.sampled_from([1, 1, 2])),
        ahead=draw(st.sampled_from([False, False, True])),
        shuffle=draw(st.booleans()),
        given=draw(st.booleans()),
        momentum=draw(st.booleans()),
        divisor=draw(st.sampled_from([1, 1, 4])),
        by_hand=plain and draw(st.booleans()),
        rounds=draw(st.integers(3, 9)),
    )


def lies(account: Account, seen: Seen) -> Iterator[str]:
    """What the trace says that is not so, or does not say."""
    uses = list(account.uses)
    for k, record in enumerate(seen.steps):
        mine: list[Use] = []
        while uses and not record.lr and not mine:
            mine.append(uses.pop(0))
        while uses and sum(len(use.lr) for use in mine) < len(record.lr):
            mine += [use for use in [uses.pop(0)] if use.lr or use.backwards]
        for text in _lies(mine, record, seen):
            yield f"step {k}: {text}"
    if any(use.lr or use.backwards for use in uses):
        yield f"{len(uses)} uses without a record"
    yield from _discard_lies(account, seen)


def _lies(uses: list[Use], record: StepRecord, seen: Seen) -> Iterator[str]:
    if not same(record.lr, [lr for use in uses for lr in use.lr]):
        yield f"lr {record.lr} instead of {[use.lr for use in uses]}"
        return
    backwards = [one for use in uses for one in use.backwards]
    losses = [one.loss for one in sorted(backwards, key=lambda one: one.number)]
    if not same(record.losses, losses):
        if record.losses or not seen.says(WORDS["loss"]):
            yield f"losses {record.losses} instead of {losses}"
    elif record.loss is not None and not close(record.loss, sum(losses) / len(losses)):
        yield f"loss {record.loss} of {losses}"
    yield from _row_lies(uses, record, seen)
    yield from _batch_lies(uses, record, seen)


def _row_lies(uses: list[Use], record: StepRecord, seen: Seen) -> Iterator[str]:
    rows: dict[str, float] = {}
    twice: set[str] = set()
    for use in uses:
        twice |= use.again | (rows.keys() & use.rows.keys())
        rows |= use.rows
    zeros = set().union(*(use.zeros for use in uses))
    if twice:
        return  # what is shown of gradients that were used twice may be either
    norm = math.hypot(*rows.values()) if rows else None
    if record.grad_norm is None:
        if norm is not None and not seen.says(WORDS["norm"]):
            yield f"no norm instead of {norm}, and no note"
    elif not close(record.grad_norm, norm or 0.0):
        yield f"grad_norm {record.grad_norm} instead of {norm}"
    if record.gradients is not None and record.grad_norm is not None:
        names = record.gradients.names
        found = dict(zip(names, record.gradients.column("norm").tolist(), strict=True))
        for name, got in found.items():
            expected = rows.get(name, 0.0 if name in zeros and not math.isnan(got) else math.nan)
            if not (math.isnan(got) and math.isnan(expected)) and not math.isclose(
                got, expected, rel_tol=1e-5, abs_tol=1e-7 * (norm or 0.0)
            ):
                yield f"norm of {name} {got} instead of {expected}"
    yield from _clip_lies([call for use in uses for call in use.clips], set(rows), record, seen)


def _clip_lies(calls: list[Any], rows: set[str], record: StepRecord, seen: Seen) -> Iterator[str]:
    clip = record.clip
    if "after the step" in record.remarks:
        return  # clipping that comes too late is shown, and remarked upon
    real = [call for call in calls if call.kind != "infinity"]
    if not calls and clip is not None:
        yield f"{clip} where nobody clipped"
    if clip is None:
        if real and not seen.says(WORDS["clip"]):
            yield f"no clip instead of {calls}"
        return
    if any(call.stale or not call.names <= rows for call in calls) or not calls:
        return  # a backward has added to what was clipped: there are two ways to tell that
    groups: list[tuple[frozenset[str], float, float]] = []
    for call in calls:
        for k, (names, before, _) in enumerate(groups):
            if names & call.names:
                groups[k] = (names | call.names, before, call.after)
                break
        else:
            groups.append((call.names, call.before, call.after))
    before = math.hypot(*(group[1] for group in groups))
    after = math.hypot(*(group[2] for group in groups))
    for name, got, expected in (
        ("before", clip.norm_before, before),
        ("after", clip.norm_after, after),
    ):
        if not close(got, expected, within=2e-5):
            yield f"clip {name} {got} instead of {expected}"


def _batch_lies(uses: list[Use], record: StepRecord, seen: Seen) -> Iterator[str]:
    got = {(ref.epoch, ref.batch_index, ref.sample_ids) for ref in record.batches}
    backwards = [one for use in uses for one in use.backwards]
    sure = {batch for one in backwards for batch in one.fresh}
    maybe = {batch for one in backwards for batch in one.batches}
    maybe |= {batch for use in uses for batch in use.delivered}
    if len(got) != len(record.batches):
        yield f"a batch twice in {record.batches}"
    if got - maybe:
        yield f"batches {sorted(got)} instead of {sorted(sure)}"
    elif sure - got and not seen.says(WORDS["batches"]):
        yield f"batches {sorted(got)} instead of {sorted(sure)}, and no note"


def _discard_lies(account: Account, seen: Seen) -> Iterator[str]:
    lost = [one for one in account.backwards if one.lost]
    if seen.discarded is not None and bool(lost) != bool(seen.discarded):
        yield f"{seen.discarded} discarded instead of {len(account.discards)}"
    if seen.discarded is not None and seen.discarded > len(lost):
        yield f"{seen.discarded} discarded of {len(lost)} backwards"
    batches = {batch for one in lost for batch in one.batches}
    for record in seen.steps:
        for one in record.discarded:
            told = {(ref.epoch, ref.batch_index, ref.sample_ids) for ref in one.batches}
            if told - batches:
                yield f"batches {told} were not thrown away"
            if one.loss is not None and not _is_mean(one.loss, [one.loss for one in lost]):
                yield f"a discarded loss {one.loss} of {[one.loss for one in lost]}"


def _is_mean(value: float, losses: list[float]) -> bool:
    """Whether the value is the mean of some neighbours."""
    n = len(losses)
    return any(
        close(value, sum(losses[i:j]) / (j - i)) for i in range(n) for j in range(i + 1, n + 1)
    )


def run(program: Program, plan: str | None) -> tuple[Run, list[Seen]]:
    torch.manual_seed(0)
    tracer = Tracer(plan)
    with forced(plan):
        done = Run(program, tracer)
    return done, [Seen.of(trace) for trace in tracer.traces]


def hold(plan: str, examples: int) -> None:
    """Runs so many random loops, always the same."""

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def check(program: Program) -> None:
        bare, _ = run(program, None)
        traced, [seen] = run(program, plan)
        assert traced.numbers == bare.numbers
        assert all(map(torch.equal, traced.state, bare.state))
        assert list(lies(traced.account, seen)) == []

    check()


def alone(plan: str, count: int) -> None:
    """Has `hold` run in a process of its own.

    What hypothesis tries depends on the modules that are loaded, so it is the same only there.
    """
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_randomly as t; "
    done = subprocess.run(
        [sys.executable, "-c", code + f"t.hold({plan!r}, {count})"],
        capture_output=True,
        text=True,
        timeout=patience(600),
    )
    assert done.returncode == 0, done.stderr[-20_000:]


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_many_loops_that_nobody_wrote(plan: str) -> None:
    """Of 300 random loops no record says what is not so, and none is changed."""
    alone(plan, 300)


A, B, Z = Op("draw", "0"), Op("backward"), Op("zero", "optimizer")
STEP = Op("step", "all")
FOUND = {
    "a layer of one of two optimizers is replaced": Program(
        (A, Op("replace", "0", 3), B, STEP, Z), optimizers=2
    ),
    "a backward of a part and nothing new, fetched ahead": Program(
        (Z, A, Op("backward", "2", 3), B, STEP), ahead=True
    ),
    "the last but one is passed over, fetched ahead": Program(
        (A, Op("skip", "", 5), B, STEP, Z), ahead=True
    ),
    "more is drawn than usual, fetched ahead": Program(
        (Z, A, B, STEP, Op("draw", "0", 2)), ahead=True
    ),
    "one of two steps alone, then both": Program(
        (A, Op("discard", "None", 4), B, STEP, B, Op("step", "1", 3), Z), optimizers=2
    ),
    "a batch after the step, before the mark": Program(
        (Z, A, B, STEP, Op("draw", "1")), optimizers=2, loaders=2, by_hand=True
    ),
    "clipping that comes too late, then no gradients": Program(
        (
            *(A, Op("step", "all", 3), STEP, B, Op("clip", "each"), STEP),
            *(Op("skip", "", 5), Op("clip", "each", 3), Z),
        ),
        rounds=5,
    ),
}
"""Programs that once were told wrongly."""


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", FOUND)
def test_a_loop_that_was_told_wrongly(name: str, plan: str) -> None:
    """What chance has found once is told truly."""
    done, [seen] = run(FOUND[name], plan)
    assert list(lies(done.account, seen)) == []


LIES: dict[str, Callable[[StepRecord], StepRecord]] = {
    "losses": lambda r: replace(r, losses=(0.5,)),
    "grad_norm": lambda r: replace(r, grad_norm=0.5),
    "no norm": lambda r: replace(r, grad_norm=None),
    "clip": lambda r: replace(r, clip=None),
    "clip before": lambda r: replace(r, clip=replace(r.clip, norm_before=0.5) if r.clip else None),
    "batches": lambda r: replace(r, batches=(replace(r.batches[0], batch_index=9),)),
    "lr": lambda r: replace(r, lr=(0.5,)),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found(name: str) -> None:
    """What a record says of a random loop that is not so is named."""
    body = (Op("draw", "0"), Op("backward"), Op("clip", "norm"), Op("step", "all"))
    done, [seen] = run(Program((*body, Op("zero", "module")), given=True), "cpu")
    assert list(lies(done.account, seen)) == []
    steps = [*seen.steps[:-1], LIES[name](seen.steps[-1])]
    assert any(name in text for text in lies(done.account, replace(seen, steps=steps)))


def test_a_missing_record_is_found() -> None:
    """A use of gradients that no record has is named."""
    body = (Op("draw", "0"), Op("backward"), Op("step", "all"), Op("zero", "module"))
    done, [seen] = run(Program(body), "cpu")
    assert list(lies(done.account, replace(seen, steps=seen.steps[:-1])))
