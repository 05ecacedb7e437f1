"""What a user may ask of spike detection."""

from __future__ import annotations

import dataclasses

import pytest

from gradtrace import SpikeRule


def test_the_defaults_are_those_that_were_tuned() -> None:
    """The README's numbers are of these; whoever changes one measures again."""
    assert dataclasses.asdict(SpikeRule()) == {
        "false_alarm_rate": 1e-4,
        "min_ratio": 1.5,
        "window": 1000,
        "warmup": 20,
        "cooldown": 3,
        "patience": 25,
        "signals": ("loss", "grad_norm"),
        "layers": True,
    }


def test_signals_may_be_any_sequence() -> None:
    """They are kept as a tuple, in the order given."""
    assert SpikeRule(signals=["grad_norm"]).signals == ("grad_norm",)
    assert SpikeRule(signals=()).signals == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"false_alarm_rate": 0.0}, "above 0"),
        ({"false_alarm_rate": "often"}, "expected a number"),
        ({"min_ratio": 0.5}, "at least 1"),
        ({"window": 10}, "at least 50"),
        ({"warmup": 2.5}, "number of steps"),
        ({"warmup": 200, "window": 100}, "at most as many"),
        ({"cooldown": -1}, "at least 0"),
        ({"patience": True}, "number of steps"),
        ({"signals": ("loss", "weights")}, "out of"),
        ({"signals": "loss"}, "out of"),
        ({"signals": None}, "signals is None; expected a sequence out of"),
        ({"signals": ([],)}, "out of"),
    ],
)
def test_wrong_rules_are_refused(arguments: dict[str, object], message: str) -> None:
    """Where the rule is made, with what was expected."""
    with pytest.raises((TypeError, ValueError), match=message):
        SpikeRule(**arguments)  # type: ignore[arg-type]
