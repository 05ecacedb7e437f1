"""What a user asks of spike detection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

SIGNALS = ("loss", "grad_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeRule:
    """When a value is a spike.

    The alarm distance follows from each series' own recent level and upper tail, so that about
    `false_alarm_rate` of ordinary values lie beyond it: on series as wide as losses and gradient
    norms usually are; much heavier tails exceed it (docs/spike-rule.md). A smaller rate also moves
    the alarm away where the tail does not ask for it. Independent of that, a spike is at least
    `min_ratio` times its baseline.

    `window`: accepted values the tail is learned from. `warmup`: values before the first alarm
    (a tail needs them; the first steps of a run are never flagged). `cooldown`: alarms no further
    apart than this many steps are one spike. `patience`: as many alarms in a row are a new level,
    which is accepted. `signals`: which series are watched, of "loss" and "grad_norm". `layers`:
    whether a spike names the layers whose own norm rose.

    Raises TypeError or ValueError that says what was expected.
    """

    false_alarm_rate: float = 1e-4
    min_ratio: float = 1.5
    window: int = 1000
    warmup: int = 20
    cooldown: int = 3
    patience: int = 25
    signals: Sequence[str] = SIGNALS
    layers: bool = True

    def __post_init__(self) -> None:
        rate = _number("false_alarm_rate", self.false_alarm_rate)
        if not 0 < rate <= 0.01:
            raise ValueError(
                f"SpikeRule.false_alarm_rate is {rate}; expected a share of steps above 0 and at "
                "most 0.01, such as 1e-4 for one false alarm in 10,000 steps"
            )
        ratio = _number("min_ratio", self.min_ratio)
        if not 1 <= ratio < float("inf"):
            raise ValueError(
                f"SpikeRule.min_ratio is {ratio}; expected a finite factor of at least 1, such as "
                "1.5: a spike is that many times its baseline or more"
            )
        for name, least in (("window", 50), ("warmup", 10), ("cooldown", 0), ("patience", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"SpikeRule.{name} is {value!r}; expected a number of steps")
            if value < least:
                raise ValueError(f"SpikeRule.{name} is {value}; expected at least {least} steps")
        if self.warmup > self.window:
            raise ValueError(
                f"SpikeRule.warmup is {self.warmup}, more than its window of {self.window} steps; "
                "expected at most as many"
            )
        if isinstance(self.signals, str) or not isinstance(self.signals, Iterable):
            raise TypeError(
                f"SpikeRule.signals is {self.signals!r}; expected a sequence out of {SIGNALS}: "
                "wrap a single one in a tuple, or give gradtrace(spikes=None) to watch none"
            )
        signals = tuple(self.signals)
        if any(signal not in SIGNALS for signal in signals):
            raise ValueError(
                f"SpikeRule.signals is {signals!r}; expected a sequence out of {SIGNALS}"
            )
        object.__setattr__(self, "signals", signals)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"SpikeRule.{name} is {value!r}; expected a number")
    return float(value)
