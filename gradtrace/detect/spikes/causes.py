"""What may lie behind a spike: evidence in numbers, and how far it goes.

Every finding says what it rests on. Where there is too little to tell, that is the finding: a
`Cause` whose confidence is None. Confidences are 1 - p of the test named in each function, or a
fixed judgement where no test applies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gradtrace.detect.spikes.history import (
    JUMP,
    Facts,
    History,
    ids_of,
    length_of,
    lr_ratio,
    source_of,
)
from gradtrace.detect.spikes.period import LEAST, Period, find_period
from gradtrace.records import BatchRef, Cause, SampleId, Spike, Suspect

CALM = 0.5
"""A score below this is ordinary."""
RECENT = 5
SHOWN = 20
SURE = 0.05
LIKELY = 0.5
"""What chance does more often than that is no finding."""
SMALL = 0.5
FIXED = 0.7
"""Confidence in what no test can put a number on."""


class Causes:
    """Judges spikes in order, remembering them. One thread; some milliseconds a spike."""

    def __init__(self, history: History, *, world_size: int = 1) -> None:
        self._history = history
        self._world_size = world_size

    def suspect(self, signal: str, facts: Facts) -> tuple[Suspect, str]:
        """Whether the step's own batch or the update before it made the value high, and why."""
        previous = self._history.before(facts.step)
        usual = self._usual_loss(facts.step)
        if len(facts.losses) > 1 and signal == "loss" and usual is not None:
            high = [loss > JUMP * usual for loss in facts.losses]
            if all(high):
                return "update", (
                    f"all {len(high)} micro-batches have a high loss: the weights were off before "
                    "they were read"
                )
            if any(high):
                return "batch", (
                    f"{sum(high)} of {len(high)} micro-batches has a high loss, the others do not"
                )
        if previous is None:
            return "unknown", "the step before is not known"
        if previous.scores.get("grad_norm", 0.0) >= 1.0:
            clipped = previous.coefficient < 0.9
            if not clipped:
                return "update", (
                    f"the step before had a gradient norm of {previous.norm:.4g}, a spike itself, "
                    "and it was not clipped"
                )
        rise = lr_ratio(previous.lr, facts.lr)
        if rise >= JUMP:
            return "update", f"the learning rate rose {rise:.3g} times"
        if len(self._history.steps) < RECENT:
            return "unknown", "there are too few steps to compare with"
        return "batch", "the step before was ordinary, so its update was too"

    def of(self, spike: Spike, facts: Facts) -> tuple[Cause, ...]:
        """The causes found, most likely first, those that cannot be judged last."""
        tests: tuple[Callable[[Spike, Facts], Iterator[Cause]], ...] = (
            self._same_samples,
            self._source,
            self._length,
            self._small_batch,
            self._period,
            self._learning_rate,
            self._bad_input,
            self._half_precision,
            self._one_rank,
            self._one_signal,
            self._update_before,
        )
        found = [cause for test in tests for cause in test(spike, facts)]
        self._history.add_spike(facts)
        return tuple(sorted(found, key=lambda c: 1.0 if c.confidence is None else -c.confidence))

    # -- data ---

    def _same_samples(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        """Samples that were in earlier spikes; p of so many by chance, of one or of all."""
        mine = ids_of(_blamed(spike, facts))
        earlier = [past for past in self._history.spikes if past.step < spike.step]
        if not mine:
            yield _unknown("same samples", "the batches carry no sample ids")
            return
        if not earlier:
            return
        seen: Counter[SampleId] = Counter()
        for past in earlier:
            seen.update(mine & ids_of(past.batches))
        if not seen:
            return
        size = max(self._history.samples, len(mine))
        [(first, times)] = seen.most_common(1)
        shares = [min(1.0, len(ids_of(past.batches)) / size) for past in earlier]
        expected = sum(shares)
        # One that comes back stands out more than all of them together, several less.
        alone = len(mine) * _binomial_tail(len(earlier), times, expected / len(earlier))
        p = min(1.0, 2 * min(alone, _poisson_tail(sum(seen.values()), len(mine) * expected)))
        if p >= LIKELY:
            return
        # Those that came back as often as any; others were beside them by chance.
        shown = [sample for sample, count in seen.most_common(SHOWN) if count == times]
        steps = [past.step for past in earlier if ids_of(past.batches) & set(shown)]
        others = f", as were {len(shown) - 1} more of its samples" if len(shown) > 1 else ""
        yield Cause(
            "same samples",
            f"sample {first!r} was in {times} of {len(earlier)} earlier "
            f"spike{'s' * (len(earlier) > 1)} ({expected:.2g} expected by chance){others}",
            1.0 - p,
            {
                "samples": shown,
                "steps": steps[-SHOWN:],
                "expected": expected,
                "p": p,
                "samples_in_epoch": size,
            },
        )

    def _source(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        """A source that is in more spikes than its share of steps explains (binomial)."""
        history = self._history
        mine = _sources(spike.batches)
        if not mine or not history.steps_with_sources:
            return
        spikes = [_sources(past.batches) for past in history.spikes] + [mine]
        if len(spikes) < 3:
            yield _unknown("source", f"only {len(spikes)} spikes so far")
            return
        for source in sorted(mine):
            share = history.source_steps[source] / history.steps_with_sources
            hits = sum(source in sources for sources in spikes)
            p = min(1.0, _binomial_tail(len(spikes), hits, share) * max(1, len(mine)))
            if p < SURE:
                yield Cause(
                    "source",
                    f"{hits} of {len(spikes)} spikes hold samples of {source!r}, which is in "
                    f"{share:.0%} of all steps",
                    1.0 - p,
                    {"source": source, "spikes": hits, "of": len(spikes), "share": share, "p": p},
                )

    def _length(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        """A longest sample beyond all of the last steps (its rank is the p-value)."""
        lengths = [
            length
            for sample in ids_of(spike.batches)
            if isinstance(sample, str) and (length := length_of(sample)) is not None
        ]
        if not lengths:
            return
        usual = np.asarray(self._history.lengths)
        if len(usual) < 50:
            yield _unknown("length", f"only {len(usual)} steps with known lengths")
            return
        longest = max(lengths)
        p = float(np.mean(usual >= longest))
        if p <= 0.02:
            yield Cause(
                "length",
                f"its longest sample has {longest} tokens; {1 - p:.0%} of steps have none as long",
                1.0 - p,
                {"length": longest, "median": float(np.median(usual)), "p": p},
            )

    def _small_batch(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        """A batch of half the usual size or less: the last of an epoch, most often."""
        mine = _size_of(facts.batches)
        usual = [size for past in self._history.steps if (size := _size_of(past.batches))]
        if not mine or len(usual) < RECENT:
            return
        middle = float(np.median(usual))
        if mine <= SMALL * middle:
            yield Cause(
                "small batch",
                f"its batch has {mine} samples where {middle:.0f} are usual: the mean over few is "
                "noisier (drop_last=True leaves such batches out)",
                FIXED,
                {"samples": mine, "usual": middle},
            )

    # -- time ---

    def _period(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        """Spikes every k steps (binomial over phases), and what else happens that often."""
        onsets = [past.step for past in self._history.spikes if past.step < spike.step]
        onsets.append(spike.step)
        if len(onsets) < LEAST:
            yield _unknown("period", f"{len(onsets)} spikes so far, it takes {LEAST}")
            return
        rhythms = [round(k) for _, k in self._rhythms()]
        period = find_period(onsets, known=rhythms) or find_period(onsets)
        if period is None or spike.step % period.steps not in period.phases:
            return
        matches = [name for name, k in self._rhythms() if _matches(period, k)]
        matches += [
            name
            for name, steps in (
                ("pauses (evaluation or checkpoints)", self._history.pauses),
                ("jumps of the learning rate", self._history.jumps),
            )
            if _coincides(period, steps)
        ]
        text = f"spikes come every {period.steps} steps ({period.hits} of {period.slots} times)"
        micro_batches = len(facts.batches)
        if micro_batches > 1:
            text += f", {period.steps * micro_batches} batches at {micro_batches} a step"
        if matches:
            text += f", as do {', '.join(matches)}"
        yield Cause(
            "period",
            text,
            1.0 - period.p_value,
            {
                "steps": period.steps,
                "batches": period.steps * max(1, micro_batches),
                "phases": list(period.phases[:SHOWN]),
                "hits": period.hits,
                "slots": period.slots,
                "p": period.p_value,
                "matches": matches,
            },
        )

    def _rhythms(self) -> Iterator[tuple[str, float]]:
        starts = list(self._history.epoch_starts)
        if len(starts) >= 3:
            yield "epochs", float(np.median(np.diff(starts)))

    def _learning_rate(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        """A jump within the last steps, or the top of a warm-up."""
        recent = [f for f in self._history.steps if f.step <= spike.step][-40:]
        for before, after in zip(recent[-RECENT - 1 :], recent[-RECENT:], strict=False):
            rise = lr_ratio(before.lr, after.lr)
            if rise >= JUMP and len(recent) > RECENT:
                yield Cause(
                    "learning rate",
                    f"the learning rate rose {rise:.3g} times at step {after.step}",
                    FIXED,
                    {"step": after.step, "ratio": rise},
                )
                return
        rates = np.asarray([f.lr[0] for f in recent if f.lr])
        if len(rates) < 20 or not np.isfinite(rates).all():
            return
        top = int(rates.argmax())
        rising = top >= 10 and bool((np.diff(rates[: top + 1]) > 0).all())
        if rising and len(rates) - top <= 15 and rates[top] > 1.05 * rates[0]:
            yield Cause(
                "warm-up",
                f"the learning rate is at the top of its warm-up, {rates[top]:.3g}",
                0.5,
                {"lr": float(rates[top]), "steps_since_top": len(rates) - 1 - top},
            )

    # -- numbers ---

    def _bad_input(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        if facts.bad_module is not None:
            yield Cause(
                "non-finite input",
                f"the output of {facts.bad_module} is not finite",
                0.95,
                {"module": facts.bad_module},
            )
        elif spike.nonfinite:
            yield Cause(
                "non-finite gradients",
                f"{spike.nonfinite} gradient values are NaN or Inf",
                0.9,
                {"count": spike.nonfinite},
            )

    def _half_precision(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        recent = [f for f in self._history.steps if f.step <= spike.step][-RECENT - 1 :]
        if facts.scale is None:
            return
        skipped = [f.step for f in recent if f.skipped]
        if skipped:
            yield Cause(
                "half precision",
                f"the AMP scaler skipped step {skipped[-1]} at scale {facts.scale:g}: half "
                "precision overflowed",
                FIXED,
                {"steps": skipped, "scale": facts.scale},
            )

    def _one_rank(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        if self._world_size > 1:
            yield _unknown(
                "one rank", f"this is rank {spike.rank}; what the others saw is in their own runs"
            )

    # -- the two signals, and the step before ---

    def _one_signal(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        other = "grad_norm" if spike.signal == "loss" else "loss"
        score = facts.scores.get(other)
        if score is None or score >= CALM:
            return
        evidence = {"score": spike.score, f"{other}_score": score}
        if spike.signal == "loss":
            yield Cause(
                "unusual loss only",
                "the loss is unusual, its gradient is not: labels that contradict what is learned, "
                "rather than broken inputs",
                0.5,
                evidence,
            )
        else:
            yield Cause(
                "unusual gradient only",
                "the gradient is unusual, the loss is not: a few samples or layers pull hard",
                0.4,
                evidence,
            )

    def _update_before(self, spike: Spike, facts: Facts) -> Iterator[Cause]:
        if spike.suspect == "update":
            yield Cause("update before", spike.suspicion, FIXED, {"step": spike.step - 1})

    def _usual_loss(self, step: int) -> float | None:
        recent = [
            f.loss
            for f in self._history.steps
            if f.step < step and f.loss is not None and math.isfinite(f.loss)
        ][-50:]
        return float(np.median(recent)) if len(recent) >= RECENT else None


def _blamed(spike: Spike, facts: Facts) -> Sequence[BatchRef]:
    """The micro-batch with the largest loss where batches and losses match, else all batches."""
    if spike.micro_batch is not None and len(facts.losses) == len(spike.batches):
        return (spike.batches[spike.micro_batch],)
    return spike.batches


def _sources(batches: Sequence[BatchRef]) -> set[str]:
    found = {source_of(s) for s in ids_of(batches) if isinstance(s, str)}
    return {source for source in found if source is not None}


def _unknown(kind: str, why: str) -> Cause:
    return Cause(kind, f"not enough data: {why}", None)


def _matches(period: Period, k: float) -> bool:
    return k >= 2 and abs(period.steps - k) <= max(1.0, 0.02 * k)


def _coincides(period: Period, steps: Sequence[int]) -> bool:
    """Whether something else happens at the period's phase, or one step before it."""
    if len(steps) < 3:
        return False
    offset = (np.asarray(steps) - period.phase) % period.steps
    near = (offset <= 1) | (offset >= period.steps - 1)
    return bool(near.mean() >= 0.6) and int(near.sum()) >= 3 and period.steps > 4


def _size_of(batches: Sequence[BatchRef]) -> int:
    return sum(len(batch.sample_ids or ()) for batch in batches)


def _poisson_tail(count: int, mean: float) -> float:
    """P(X >= count)."""
    term, total = math.exp(-mean), 0.0
    for k in range(count):
        total += term
        term *= mean / (k + 1)
    return max(0.0, 1.0 - total)


def _binomial_tail(n: int, hits: int, p: float) -> float:
    """P(X >= hits)."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(hits, n + 1))
