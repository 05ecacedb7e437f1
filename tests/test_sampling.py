"""What each step measures, and of which layers."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from gradtrace.sampling import Due, Sampling

KINDS = ("gradients", "activations", "updates", "histograms")


def test_the_defaults_are_those_of_the_documentation() -> None:
    """Gradients at every step, activations and updates at every 50th, histograms never."""
    sampling = Sampling()
    assert sampling.burst == 5
    with pytest.raises(TypeError):
        Sampling(1)  # type: ignore[call-arg]
    for step in (10, 49, 51, 99):
        assert sampling.due(step) == Due(True, False, False, False, False)
    for step in (50, 100):
        assert sampling.due(step) == Due(True, True, True, False, True)
    for step in range(10):
        assert sampling.due(step) == Due(True, True, True, False, True)


@pytest.mark.parametrize("seed", range(20))
def test_each_kind_has_its_own_cadence(seed: int) -> None:
    """On multiples of it, on the first steps and in a burst; one that is 0 never."""
    chance = random.Random(seed)
    every = {kind: chance.choice((0, 1, 2, 3, 7)) for kind in KINDS}
    first, until = chance.randint(0, 5), chance.randint(-1, 60)
    sampling = Sampling(**every, first=first)  # type: ignore[arg-type]
    for step in range(80):
        due = sampling.due(step, until)
        everything = step < first or step < until
        expected = {kind: n > 0 and (everything or step % n == 0) for kind, n in every.items()}
        for kind in ("activations", "updates", "histograms"):
            assert getattr(due, kind) == expected[kind], (kind, step)
        # A histogram stands beside the statistics of the same gradients.
        assert due.gradients == (expected["gradients"] or expected["histograms"])
        assert due.full == (everything or expected["updates"])


def test_ranks_decide_alike() -> None:
    """The answer depends on the step alone: asked twice, or by an equal object, it is the same."""
    one, other = Sampling(histograms=3), Sampling(histograms=3)
    for step in (5, 3, 99, 3):
        assert one.due(step) == other.due(step) == one.due(step)


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        (("*",), (), ["encoder.0.weight", "encoder.10.bias", "head.weight", "Head.weight"]),
        (("encoder.*",), (), ["encoder.0.weight", "encoder.10.bias"]),
        (("*.weight",), ("head*",), ["encoder.0.weight", "Head.weight"]),
        (("encoder.?.*", "head.*"), (), ["encoder.0.weight", "head.weight"]),
        (("[eh]*",), ("*.bias", "*.0.*"), ["head.weight"]),
        ((), (), []),
        (("*",), ("*",), []),
    ],
)
def test_globs_choose_layers(
    include: tuple[str, ...], exclude: tuple[str, ...], chosen: list[str]
) -> None:
    """Letter case counts, a dot is a letter like others, and exclude wins over include."""
    sampling = Sampling(include=include, exclude=exclude)
    names = ["encoder.0.weight", "encoder.10.bias", "head.weight", "Head.weight"]
    assert [name for name in names if sampling.selects(name)] == chosen


@pytest.mark.parametrize(
    ("field", "value", "error", "advice"),
    [
        ("gradients", -1, ValueError, "use 0 to switch it off"),
        ("activations", 0.5, TypeError, "an int >= 0"),
        ("updates", True, TypeError, "an int >= 0"),
        ("first", -3, ValueError, "a number of steps >= 0"),
        ("burst", "5", TypeError, "an int >= 0"),
        ("histograms", -10, ValueError, "use 0 to switch it off"),
        ("include", "encoder.*", TypeError, "wrap a single glob in a tuple"),
        ("include", None, TypeError, "a sequence of globs"),
        ("exclude", 3, TypeError, "a sequence of globs"),
        ("exclude", (1,), TypeError, "a sequence of globs"),
    ],
)
def test_a_wrong_value_raises_where_it_is_written(
    field: str, value: Any, error: type[Exception], advice: str
) -> None:
    """The error names the field and the value, and says what is expected."""
    with pytest.raises(error, match=re.escape(f"Sampling.{field} is {value!r}")) as caught:
        Sampling(**{field: value})
    assert advice in str(caught.value)


def test_globs_may_come_from_a_generator() -> None:
    """Checking them does not use them up."""
    found = Sampling(include=(name for name in ("a", "b")))  # type: ignore[arg-type]
    assert found.include == ("a", "b") and found.selects("b")


def test_a_sampling_cannot_be_changed() -> None:
    """It may be shared by traces, and be a key."""
    sampling = Sampling()
    with pytest.raises(AttributeError):
        sampling.first = 3  # type: ignore[misc]
    assert hash(sampling) == hash(Sampling()) and sampling == Sampling()
