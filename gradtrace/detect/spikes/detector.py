"""Spikes in the loss and the gradient norm, told at the step they happen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradtrace.detect.order import LayerOrder
from gradtrace.detect.spikes.baseline import Baseline, Verdict
from gradtrace.detect.spikes.blame import blame
from gradtrace.detect.spikes.causes import Causes
from gradtrace.detect.spikes.history import Facts, History
from gradtrace.detect.spikes.layers import LayerLevels
from gradtrace.detect.spikes.rule import SpikeRule
from gradtrace.records import BatchRef, Event, LevelShift, Spike, StepRecord


def find_spikes(values: Iterable[float], rule: SpikeRule | None = None) -> list[int]:
    """The positions in a series that are spikes, by the same rule that watches a run.

    Each value is judged by those before it, as a ratio: NaN, Inf and values <= 0 are passed over.
    Neighbouring spikes are all listed. Raises TypeError when the values are no numbers.
    """
    if rule is not None and not isinstance(rule, SpikeRule):
        raise TypeError(
            f"rule is {rule!r}; expected a SpikeRule: for a rate of false alarms write "
            "SpikeRule(false_alarm_rate=1e-4)"
        )
    try:
        series = None if isinstance(values, (str, bytes, Mapping)) else iter(values)
    except TypeError:
        series = None
    if series is None:
        raise TypeError(f"values is a {type(values).__name__}; expected a series of numbers")
    baseline = Baseline(SpikeRule() if rule is None else rule)
    found = []
    for position, value in enumerate(series):
        try:
            number = None if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, RuntimeError):
            number = None
        if number is None:
            raise TypeError(
                f"values[{position}] is a {type(value).__name__}; expected a number: give "
                "math.nan for one that is missing, and one series at a time"
            )
        verdict = baseline.update(number)
        if verdict is not None and verdict.alarm:
            found.append(position)
    return found


@dataclass(slots=True)
class _Open:
    """A spike that may still go on."""

    event: Spike
    last: int


class SpikeDetector:
    """Fed every record in order; gives `Spike` and `LevelShift` events.

    `forward_order` ranks modules by first execution; it may grow. `on_alarm(step)` is called at the
    first step of each spike, before its event exists. About 0.2 ms a step. One thread.
    """

    def __init__(
        self,
        rule: SpikeRule,
        forward_order: Mapping[str, int],
        *,
        world_size: int = 1,
        on_alarm: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._rule = rule
        self._order = LayerOrder(forward_order)
        self._on_alarm = on_alarm
        self._baselines = {signal: Baseline(rule) for signal in rule.signals}
        self._layers = LayerLevels()
        self._history = History()
        self._causes = Causes(self._history, world_size=world_size)
        self._open: dict[str, _Open] = {}
        self.scores: dict[str, float] = {}
        """The newest score of each signal."""

    def update(self, record: StepRecord) -> list[Event]:
        """The events this record causes: ends of earlier spikes first."""
        events: list[Event] = []
        verdicts = {
            signal: verdict
            for signal, baseline in self._baselines.items()
            if (value := getattr(record, signal)) is not None
            and (verdict := baseline.update(value)) is not None
        }
        self.scores = {signal: verdict.score for signal, verdict in verdicts.items()}
        facts = self._history.add(record, self.scores)
        for signal in self._baselines:
            verdict = verdicts.get(signal)
            alarm = verdict is not None and verdict.alarm
            if not alarm:
                events += self._end(signal, record)
            if verdict is None:
                continue
            if verdict.shifted:
                events.append(_shift(signal, verdict, record, self._rule.patience))
                self._open.pop(signal, None)
            elif alarm and signal in self._open:
                self._open[signal].last = record.step
            elif alarm:
                self._on_alarm(record.step)
                spike = self._spike(signal, verdict, record, facts)
                self._open[signal] = _Open(spike, record.step)
                events.append(spike)
        if record.gradients is not None and not any(v.score >= 1 for v in verdicts.values()):
            self._layers.learn(record.gradients)
        return events

    def _end(self, signal: str, record: StepRecord) -> list[Event]:
        """The whole of a spike that has ended, if it was longer than its first step told."""
        going = self._open.get(signal)
        if going is None or record.step - going.last <= self._rule.cooldown:
            return []
        del self._open[signal]
        return _prolonged(going)

    def finish(self) -> list[Event]:
        """The whole of spikes that were still going on when the run ended."""
        going, self._open = list(self._open.values()), {}
        return [event for one in going for event in _prolonged(one)]

    def _spike(self, signal: str, verdict: Verdict, record: StepRecord, facts: Facts) -> Spike:
        rises = (
            self._layers.rises(record.gradients)
            if self._rule.layers and record.gradients is not None
            else []
        )
        ordered = self._order.forward([rise.name for rise in rises], record.gradients)
        blamed = blame(signal, facts, self._history)
        previous = self._history.before(record.step)
        spike = Spike(
            step=record.step,
            time=record.time,
            severity="warning",
            message="",
            rank=record.rank,
            signal=signal,
            value=verdict.value,
            baseline=verdict.level,
            ratio=verdict.ratio,
            score=verdict.score,
            batches=record.batches,
            previous_batches=() if previous is None else previous.batches,
            suspect=blamed.suspect,
            suspicion=blamed.suspicion,
            blamed=blamed.batches,
            micro_batch=_largest([part.loss for part in facts.parts]),
            lr=record.lr,
            clip=record.clip,
            layers=tuple(rises),
            first_forward=ordered[0] if ordered else None,
            first_backward=ordered[-1] if ordered else None,
            nonfinite=facts.nonfinite,
            seconds=record.seconds,
        )
        causes = self._causes.of(spike, facts)
        return dataclasses.replace(spike, causes=causes, message=_message(spike, causes))

    def state_dict(self) -> dict[str, Any]:
        """What was learned about the signals, fit for JSON."""
        return {signal: baseline.state_dict() for signal, baseline in self._baselines.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where another detector stopped; signals it did not watch start anew."""
        for signal, baseline in self._baselines.items():
            if signal in state:
                baseline.load_state_dict(state[signal])


def latest_spikes(events: Iterable[Event]) -> list[Spike]:
    """Each spike once, in order of appearance, as it was told last."""
    found: dict[tuple[int, str, int], Spike] = {}
    for event in events:
        if isinstance(event, Spike):
            found[event.step, event.signal, event.rank] = event
    return list(found.values())


def _prolonged(going: _Open) -> list[Event]:
    duration = going.last - going.event.step + 1
    return [dataclasses.replace(going.event, duration=duration)] if duration > 1 else []


def _largest(losses: Sequence[float | None]) -> int | None:
    """The micro-batch with the largest loss, where there is more than one."""
    known = [(loss, i) for i, loss in enumerate(losses) if loss is not None and math.isfinite(loss)]
    return max(known)[1] if len(losses) > 1 and known else None


def _shift(signal: str, verdict: Verdict, record: StepRecord, patience: int) -> LevelShift:
    return LevelShift(
        step=record.step,
        time=record.time,
        severity="info",
        message=(
            f"{signal} has stayed high for {patience} steps: its level is taken as "
            f"{verdict.value:.4g} from here on, it was {verdict.level:.4g}"
        ),
        rank=record.rank,
        signal=signal,
        before=verdict.level,
        after=verdict.value,
    )


def _message(spike: Spike, causes: tuple[Any, ...]) -> str:
    name = "loss" if spike.signal == "loss" else "gradient norm"
    text = f"{name} {spike.value:.4g} is {spike.ratio:.3g} times its baseline"
    if spike.blamed:
        text += f", {_named(spike.blamed)}"
        text += f" at step {spike.blamed_step}" if spike.blamed_step != spike.step else ""
    if spike.layers:
        text += f"; {spike.layers[0].name} rose most, {spike.layers[0].ratio:.3g} times"
    sure = [cause for cause in causes if cause.confidence]
    return f"{text}; {sure[0].message}" if sure else text


def _named(batches: Sequence[BatchRef]) -> str:
    """The first few by their places, as "batch 3, 4 of epoch 0, 17 of epoch 2"."""
    epochs: dict[int, list[str]] = {}
    for batch in batches[:8]:
        epochs.setdefault(batch.epoch, []).append(str(batch.batch_index))
    places = (f"{', '.join(some)} of epoch {epoch}" for epoch, some in epochs.items())
    return "batch " + ", ".join(places)
