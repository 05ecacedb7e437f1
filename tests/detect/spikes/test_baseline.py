"""What a spike is: far above the level, learned from values that are none, exact to the step."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from gradtrace import SpikeRule, find_spikes
from gradtrace.detect.spikes.baseline import MAXIMUM_WINDOW, Baseline

DATA = Path(__file__).parents[2] / "data"


def calm(length: int = 600, *, seed: int = 0, spread: float = 0.1) -> list[float]:
    """A series that drifts down slowly, with lognormal noise."""
    rng = np.random.default_rng(seed)
    level = 3.0 * np.exp(-np.arange(length) / 2000)
    values: list[float] = (level * np.exp(spread * rng.standard_normal(length))).tolist()
    return values


def test_a_spike_is_found_at_its_step() -> None:
    """Spikes of 2, 5 and 100 times are flagged where they are, and nothing else is."""
    values = calm()
    for step, times in ((150, 2.0), (300, 5.0), (301, 5.0), (450, 100.0)):
        values[step] *= times
    assert find_spikes(values) == [150, 300, 301, 450]


def test_calm_series_keep_to_the_false_alarm_rate() -> None:
    """Narrow and wide noise, falling fast at first as in warm-up: 3 alarms in 30,000 at most."""
    alarms = 0
    for seed in range(10):
        for spread in (0.01, 0.1, 0.3):
            values = np.asarray(calm(1000, seed=seed, spread=spread))
            values[:60] *= np.linspace(4.0, 1.0, 60)
            alarms += len(find_spikes(values.tolist()))
    assert alarms <= 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_bad_values_touch_nothing(bad: float) -> None:
    """NaN, Inf and what has no logarithm are passed over: the spikes are the same, one step on."""
    values = calm()
    values[300] *= 3
    with_bad = [*values[:200], bad, *values[200:]]
    assert find_spikes(with_bad) == [301]
    assert find_spikes([bad] * 50) == []
    # Even a long streak does not make the next ordinary value a spike.
    assert find_spikes([*values[:200], *[bad] * 500, *values[200:]]) == [800]


def test_a_spike_never_enters_the_baseline() -> None:
    """After a spike everything learned is bitwise what it is without it, but for its place."""
    rule = SpikeRule()
    with_spike, without = Baseline(rule), Baseline(rule)
    for value in calm(200):
        with_spike.update(value)
        without.update(value)
    verdict = with_spike.update(1000.0)
    without.update(math.nan)
    assert verdict is not None and verdict.alarm
    one, other = with_spike.state_dict(), without.state_dict()
    assert one.pop("outside") == [math.log(1000.0)] and other.pop("outside") == []
    assert one == other


def test_an_earlier_spike_hides_no_later_one() -> None:
    """A spike of 100 times, then others of 2.5 times within its window."""
    values = calm()
    values[300] *= 100
    for step in (305, 340, 390):
        values[step] *= 2.5
    assert find_spikes(values) == [300, 305, 340, 390]


def test_a_lasting_level_is_accepted_after_patience() -> None:
    """As many alarms in a row as `patience` are a shift; from then on the new level is ordinary."""
    rule = SpikeRule(patience=10)
    baseline = Baseline(rule)
    for value in calm(200):
        baseline.update(value)
    verdicts = [baseline.update(value * 8) for value in calm(100, seed=1)]
    assert all(v is not None for v in verdicts)
    assert [v.alarm for v in verdicts if v is not None] == [True] * 9 + [False] * 91
    assert [i for i, v in enumerate(verdicts) if v is not None and v.shifted] == [9]
    spike = baseline.update(8 * 3.0 * 4)
    assert spike is not None and spike.alarm


def test_fewer_false_alarms_may_be_asked_for() -> None:
    """A smaller rate moves the alarm away, a larger one nearer, on a heavy-tailed series."""
    rng = np.random.default_rng(0)
    values = np.exp(0.25 * rng.standard_exponential(4000)).tolist()
    often, seldom = (
        len(find_spikes(values, SpikeRule(false_alarm_rate=rate, min_ratio=1.0)))
        for rate in (1e-2, 1e-6)
    )
    assert seldom < often
    assert seldom <= 2


def test_the_smallest_ratio_holds() -> None:
    """Nothing below `min_ratio` times the baseline is a spike, however narrow the series is."""
    values = calm(400, spread=0.001)
    values[300] *= 2.0
    assert find_spikes(values) == [300]
    assert find_spikes(values, SpikeRule(min_ratio=2.5)) == []


def test_a_resumed_baseline_flags_the_same() -> None:
    """Saved through JSON and loaded at any step, it goes on as if it had never stopped."""
    values = calm(500)
    for step in (120, 121, 260, 333, 480):
        values[step] *= 3
    whole = find_spikes(values)
    assert whole == [120, 121, 260, 333, 480]
    for stop in (0, 1, 15, 50, 121, 122, 261, 400):
        first, second = Baseline(SpikeRule()), Baseline(SpikeRule())
        found = []
        for step, value in enumerate(values):
            if step == stop:
                second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            verdict = (first if step < stop else second).update(value)
            if verdict is not None and verdict.alarm:
                found.append(step)
        assert found == whole, stop


def test_a_state_saved_before_is_still_read() -> None:
    """A checkpoint holds the keys of its time: what they say of a spike goes on unchanged."""
    with (DATA / "spike-state-before-the-move.json").open() as file:
        saved = json.load(file)["loss"]
    # The series that it was saved from: the 70th value of it was a spike.
    rng = np.random.default_rng(0)
    values = np.round(np.exp(rng.normal(0, 0.1, (70, 2))), 6)[:, 0]
    values[-1] *= 50
    rule = SpikeRule(window=60)
    fed, loaded = Baseline(rule), Baseline(rule)
    for value in values:
        fed.update(float(value))
    loaded.load_state_dict(saved)
    assert saved.keys() != fed.state_dict().keys()
    for value in (1.0, 1.3, 0.9, 4.0, 1.1):
        one, other = loaded.update(value), fed.update(value)
        assert one is not None and other is not None
        assert one.alarm == other.alarm and one.score == pytest.approx(other.score)
        assert one.level == pytest.approx(other.level)


def test_a_state_of_another_window_is_refused() -> None:
    """The error says what was saved and what to do."""
    baseline = Baseline(SpikeRule(window=100))
    for value in calm(200):
        baseline.update(value)
    with pytest.raises(ValueError, match="the SpikeRule it was saved with"):
        Baseline(SpikeRule(window=60)).load_state_dict(baseline.state_dict())


def test_memory_stays_bounded() -> None:
    """The state after 20,000 values is no larger than after 1,000."""
    baseline = Baseline(SpikeRule())
    sizes = []
    values = calm(1000)
    for _ in range(20):
        for value in values:
            baseline.update(value)
        sizes.append(len(json.dumps(baseline.state_dict())))
    assert max(sizes) < 1.1 * sizes[0]
    assert len(baseline.state_dict()["values"]) == MAXIMUM_WINDOW


def test_a_value_costs_less_than_the_budget() -> None:
    """The median update stays below 200 us, the whole of what a step may take."""
    baseline = Baseline(SpikeRule())
    took = []
    for value in calm(2000):
        start = time.perf_counter()
        baseline.update(value)
        took.append(time.perf_counter() - start)
    assert float(np.median(took)) < 200e-6


@pytest.mark.parametrize(
    ("values", "rule", "message"),
    [
        ([1.0], 1e-4, "rule is 0.0001; expected a SpikeRule.*false_alarm_rate"),
        (None, None, "values is a NoneType; expected a series"),
        ("123", None, "values is a str; expected a series"),
        ({0: 1.0}, None, "values is a dict; expected a series"),
        (3.0, None, "values is a float; expected a series"),
        (np.array(3.0), None, "values is a ndarray; expected a series"),
        ([1.0, None], None, r"values\[1\] is a NoneType; expected a number.*nan"),
        ([1.0, [2.0]], None, r"values\[1\] is a list; expected a number"),
        (["1"], None, r"values\[0\] is a str; expected a number"),
    ],
)
def test_what_is_no_series_is_refused(values: object, rule: object, message: str) -> None:
    """`find_spikes` names the argument or the place in it, and what it expected."""
    with pytest.raises(TypeError, match=message):
        find_spikes(values, rule)  # type: ignore[arg-type]


def test_a_spike_in_the_warm_up_hides_no_later_one() -> None:
    """It raises no alarm, for too little is known, and is forgotten when more is."""
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(0, 0.4, 120))
    values[[11, 60, 90]] = 80.0
    assert find_spikes(values) == [60, 90]
    values[[9, 11]] = 80.0  # two beside each other
    assert find_spikes(values) == [60, 90]
    values[[18, 19]] = 80.0, 80.0  # at its very end, of two steps: not told from a new level
    assert 11 not in find_spikes(values)


def test_a_steep_start_is_no_spike() -> None:
    """A loss that falls by a tenth each step keeps its first values."""
    values = 100 * 0.9 ** np.arange(60) + 1
    assert find_spikes(values) == []
    baseline = Baseline(SpikeRule())
    for value in values[:20]:
        baseline.update(float(value))
    assert len(baseline.state_dict()["residuals"]) == 20
