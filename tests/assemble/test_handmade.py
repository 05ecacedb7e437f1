"""Clipping is told from rescaling, in streams of gradients that loops change in their own ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from gradtrace.assemble.handmade import HandMade, Verdict
from gradtrace.measure.rows import ABS, NORM, ROW
from gradtrace.records import Array

Gradients = list[npt.NDArray[np.float32]]
Change = Callable[[Gradients], Gradients]


def rows(gradients: Gradients) -> Array:
    """What is measured of layers, as far as it is asked here."""
    found = np.full((len(gradients), len(ROW)), np.nan)
    for row, gradient in zip(found, gradients, strict=True):
        row[NORM] = math.sqrt(math.fsum(float(v) ** 2 for v in gradient))
        row[ABS] = max(abs(float(v)) for v in gradient)
    return found


def total(gradients: Gradients) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for gradient in gradients for v in gradient))


def stream(seed: int, steps: int, *, median: float = 1.0) -> list[Gradients]:
    """Gradients of four layers whose global norm varies about a median, in float32."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(steps):
        scale = median * chance.lognormal(0.0, 0.8)
        layers = [chance.normal(size=n).astype(np.float32) for n in (40, 6, 24, 3)]
        size = total(layers)
        found.append([np.asarray(layer * scale / size, dtype=np.float32) for layer in layers])
    return found


def scaled(gradients: Gradients, factor: float) -> Gradients:
    return [np.asarray(gradient * np.float32(factor), dtype=np.float32) for gradient in gradients]


def by_norm(limit: float, epsilon: float = 1e-6) -> Change:
    return lambda gradients: scaled(gradients, min(1.0, limit / (total(gradients) + epsilon)))


def each(change: Change) -> Change:
    """Every layer by itself."""
    return lambda gradients: [one for gradient in gradients for one in change([gradient])]


def groups(*limits: float) -> Change:
    """The first two layers as a group, and the others."""

    def change(gradients: Gradients) -> Gradients:
        return by_norm(limits[0])(gradients[:2]) + by_norm(limits[-1])(gradients[2:])

    return change


def by_value(limit: float) -> Change:
    return lambda gradients: [np.clip(gradient, -limit, limit) for gradient in gradients]


def judged(gradients: Sequence[Gradients], change: Change) -> list[tuple[Verdict, bool]]:
    """Each verdict, and whether the change made a difference; steps that none changed are told."""
    hand_made, found = HandMade(), []
    for before in gradients:
        after = change(before)
        altered = abs(total(after) / total(before) - 1) > 1e-6
        found.append((hand_made.judge(rows(before), rows(after)), altered))
    return found


CLIPS: dict[str, tuple[Change, str, float]] = {
    "a round norm": (by_norm(0.5), "norm", 0.5),
    "three digits": (by_norm(0.125 * 3), "norm", 0.375),
    "an odd norm": (by_norm(0.7131415), "norm", 0.7131415),
    "without epsilon": (by_norm(0.5, 0.0), "norm", 0.5),
    "each layer": (each(by_norm(0.25)), "norm", 0.25),
    "each layer, at an odd norm": (each(by_norm(0.2513131)), "norm", 0.2513131),
    "two groups at one norm": (groups(0.4, 0.4), "norm", 0.4),
    "values": (by_value(0.05), "value", 0.05),
    "values at an odd bound": (by_value(0.0523137), "value", 0.0523137),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("case", CLIPS)
def test_clipping_is_known(case: str, seed: int) -> None:
    """Its kind and threshold; at an odd norm, once something told it from rescaling."""
    change, kind, threshold = CLIPS[case]
    found = judged(stream(seed, 60, median=0.6), change)
    clips = [verdict for verdict, altered in found if altered]
    assert len(clips) > 10
    late = clips[3:] if "odd" in case or "groups" in case else clips
    assert {verdict.kind for verdict in late} == {kind}
    right = [math.isclose(v.threshold, threshold, rel_tol=1e-4) for v in late]
    # Two groups whose factors happen to be equal are one for all that can be seen.
    assert sum(right) >= len(late) - ("groups" in case)
    idle = [verdict for verdict, altered in found[20:] if not altered]
    assert all(v.kind == kind and v.threshold == pytest.approx(threshold, rel=1e-4) for v in idle)


def test_groups_with_norms_of_their_own_are_known_in_time() -> None:
    """Each lands on its own norm: known once each has landed alone, or with the other."""
    found = judged(stream(0, 200, median=1.0), groups(0.4, 0.7))
    assert {v.kind for v, altered in found[-50:] if altered} <= {"norm", None}
    wrong = [v for v, altered in found if altered and v.kind == "value"]
    assert wrong == []


def divided(seed: int) -> Change:
    chance = np.random.default_rng(seed)
    return lambda gradients: scaled(gradients, 1 / float(chance.integers(2, 5000)))


def noisy(seed: int) -> Change:
    chance = np.random.default_rng(seed)
    return lambda gradients: [
        np.asarray(gradient * (1 + 0.1 * chance.normal(size=len(gradient))), dtype=np.float32)
        for gradient in gradients
    ]


def only_first(factor: float) -> Change:
    return lambda gradients: [*scaled(gradients[:1], factor), *gradients[1:]]


def adaptive(gradients: Gradients) -> Gradients:
    """Each layer to a share of a norm of its own, as adaptive clipping by weights does."""
    limits = (0.11, 0.023, 0.077, 0.0313)
    return [
        by_norm(limit)([gradient])[0] for limit, gradient in zip(limits, gradients, strict=True)
    ]


RESCALED: dict[str, Callable[[int], Change]] = {
    "tokens": divided,
    "world size": lambda seed: lambda gradients: scaled(gradients, 1 / 8),
    "a loss scale": lambda seed: lambda gradients: scaled(gradients, 1 / 1024),
    "one layer": lambda seed: only_first(0.1),
    "one layer more": lambda seed: only_first(3.0),
    "all more": lambda seed: lambda gradients: scaled(gradients, 2.5),
    "noise": noisy,
}


@pytest.mark.parametrize("case", RESCALED)
def test_rescaling_is_not_clipping(case: str) -> None:
    """Of a hundred runs of 50 steps at most one in two hundred changes is mistaken."""
    mistaken = changes = 0
    for seed in range(100):
        found = judged(stream(seed, 50, median=3.0), RESCALED[case](seed))
        changes += sum(altered for _, altered in found)
        mistaken += sum(verdict.kind is not None for verdict, altered in found if altered)
    assert changes > 4000 and mistaken <= changes / 200, (mistaken, changes)


def test_one_factor_for_all_is_told() -> None:
    """It moves the limits of histograms; anything else has none."""
    [before] = stream(0, 1)
    for factor in (0.25, 1.0, 3.0):
        verdict = HandMade().judge(rows(before), rows(scaled(before, factor)))
        assert verdict.factor == pytest.approx(factor, rel=1e-6)
    assert HandMade().judge(rows(before), rows(only_first(0.1)(before))).factor is None
    assert HandMade().judge(rows(before), rows(noisy(0)(before))).factor is None


def test_untouched_steps_with_small_norms_are_evidence() -> None:
    """A loop that changes only what is large clips; one that changes what is small does not."""
    [before] = stream(0, 1, median=9.0)
    after = scaled(before, 0.7131415 / total(before))
    knowing, ignorant = HandMade(), HandMade()
    knowing.untouched(0.6)
    ignorant.untouched(0.8)
    assert knowing.judge(rows(before), rows(after)).kind == "norm"
    assert ignorant.judge(rows(before), rows(after)).kind is None


def test_a_round_norm_counts_for_the_first_change_only() -> None:
    """Later it would be chance."""
    first, second = stream(0, 2, median=9.0)
    fresh, later = HandMade(), HandMade()
    later.judge(rows(first), rows(scaled(first, 0.123)))
    after = scaled(second, 0.5 / total(second))
    verdict = fresh.judge(rows(second), rows(after))
    assert verdict.kind == "norm" and verdict.threshold == pytest.approx(0.5, rel=1e-6)
    assert later.judge(rows(second), rows(after)).kind is None


def test_what_cannot_be_compared_is_no_clipping() -> None:
    """No gradients, all zero, not finite before or after, or grown out of nothing."""
    [before] = stream(0, 1)
    zero, bad = scaled(before, 0.0), scaled(before, math.inf)
    for was, now in (([], []), (zero, zero), (bad, before), (before, bad), (zero, before)):
        assert HandMade().judge(rows(was), rows(now)).kind is None
    assert HandMade().judge(rows(before), rows(zero)).kind is None


def test_memory_is_bounded() -> None:
    """A loop whose threshold moves on and on is followed with what is remembered of late."""
    hand_made = HandMade()
    hand_made.untouched(1e-6)
    for k, before in enumerate(stream(0, 300, median=9.0)):
        after = by_norm(0.5 * 1.01**k / 30)(before)
        assert hand_made.judge(rows(before), rows(after)).kind == "norm"
    assert len(hand_made._landings) == 16


def test_an_odd_norm_is_known_when_it_is_landed_on_again() -> None:
    """Also in a loop that clips every step: by another factor to the very same norm."""
    found = [v.kind for v, _ in judged(stream(0, 20, median=90.0), by_norm(0.7131415))]
    assert found == [None] + ["norm"] * 19


def test_a_factor_that_stays_is_no_clipping() -> None:
    """Neither where the gradients stay the same, nor where smaller ones were left alone."""
    [before] = stream(0, 1, median=90.0)
    hand_made = HandMade()
    kinds = [hand_made.judge(rows(before), rows(scaled(before, 1 / 7))).kind for _ in range(5)]
    assert kinds == [None] * 5
    hand_made = HandMade()
    hand_made.untouched(1e-3)
    kinds = [
        hand_made.judge(rows(before), rows(scaled(before, 1 / 7))).kind
        for before in stream(0, 5, median=90.0)
    ]
    assert kinds == ["norm"] + [None] * 4  # one change alone cannot be told


def test_gradients_that_were_put_where_none_were_are_no_clipping() -> None:
    """Also when the other layers land on a round norm."""
    [before] = stream(0, 1, median=90.0)
    before[0] = np.zeros_like(before[0])
    after = scaled(before, 0.5 / total(before))
    assert HandMade().judge(rows(before), rows(after)).kind == "norm"
    after[0] = after[0] + np.float32(0.1)
    after = scaled(after, 0.5 / total(after))
    assert HandMade().judge(rows(before), rows(after)).kind is None
