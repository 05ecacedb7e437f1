"""Causes that lie in the samples: the same ones, one source, a long one, few of them.

Samples are those of the blamed batches; the others of the step have nothing to do with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from gradtrace.detect.spikes.case import FIXED, Case, CauseTest, unknown
from gradtrace.detect.spikes.chance import binomial_tail, poisson_tail
from gradtrace.detect.spikes.history import RECENT, ids_of, length_of, sources_of
from gradtrace.records import BatchRef, Cause, SampleId

SHOWN = 20
"""Samples and steps that evidence lists at most."""
LIKELY = 0.5
"""What chance does more often than that is no finding."""
SIGNIFICANCE = 0.05
"""The p-value below which a source is named."""
MIN_SPIKES = 3
"""Spikes that a source must have had the chance to be in."""
RARE = 0.02
"""The share of steps that may have as long a sample where its length is named."""
MIN_LENGTHS = 50
"""Steps with known lengths that such a share rests on."""
SMALL = 0.5
"""A batch of this share of the usual size is small."""


def same_samples(case: Case) -> Iterator[Cause]:
    """Samples that were blamed for earlier spikes.

    Of s samples in an epoch, a given one is among the b_j blamed for earlier spike j with
    probability b_j / s by chance, in e = sum b_j / s of the n earlier ones on average. With `mine`
    the samples blamed now, the one seen most often in `times` of them and all seen in `total`,

        p = 2 min(mine P(X >= times), P(Y >= total)),  X ~ Binomial(n, e / n),  Y ~ Poisson(mine e).
    """
    spike, history = case.spike, case.history
    if spike.batches and not spike.blamed:
        return
    mine = ids_of(spike.blamed)
    earlier = [past for past in history.spikes if past.step < spike.step]
    if not mine:
        yield unknown("same samples", "the batches carry no sample ids")
        return
    if not earlier:
        return
    seen: Counter[SampleId] = Counter()
    for past in earlier:
        seen.update(mine & ids_of(past.batches))
    if not seen:
        return
    size = max(history.samples, len(mine))
    [(first, times)] = seen.most_common(1)
    expected = sum(min(1.0, len(ids_of(past.batches)) / size) for past in earlier)
    # One that comes back stands out more than all of them together, several less.
    one = len(mine) * binomial_tail(len(earlier), times, expected / len(earlier))
    several = poisson_tail(sum(seen.values()), len(mine) * expected)
    p = min(1.0, 2 * min(one, several))
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


def source(case: Case) -> Iterator[Cause]:
    """A source that is in more spikes than its share of batches explains.

    A source in a share f of all batches is in one of the m_j blamed for spike j with probability
    f_j = 1 - (1 - f)^m_j. Of n spikes whose batches name sources it is in at least `hits` with

        p = P(X >= hits),   X ~ Binomial(n, mean f_j),

    which bounds the tail for unequal f_j (Hoeffding 1956), times the sources tried (Bonferroni).
    """
    spike, history = case.spike, case.history
    mine = sources_of(spike.blamed)
    if not mine or not history.batches_with_sources:
        return
    blamed = [past.batches for past in history.spikes if sources_of(past.batches)]
    blamed.append(spike.blamed)
    if len(blamed) < MIN_SPIKES:
        yield unknown("source", f"only {len(blamed)} spikes so far")
        return
    for name in sorted(mine):
        share = history.source_batches[name] / history.batches_with_sources
        chances = [1.0 - (1.0 - share) ** len(batches) for batches in blamed]
        hits = sum(name in sources_of(batches) for batches in blamed)
        p = min(1.0, len(mine) * binomial_tail(len(blamed), hits, sum(chances) / len(blamed)))
        if p < SIGNIFICANCE:
            yield Cause(
                "source",
                f"{hits} of {len(blamed)} spikes hold samples of {name!r}, which is in "
                f"{share:.0%} of all batches",
                1.0 - p,
                {"source": name, "spikes": hits, "of": len(blamed), "share": share, "p": p},
            )


def length(case: Case) -> Iterator[Cause]:
    """A longest sample beyond all of the last steps; its rank among them is the p-value."""
    known = (length_of(one) for one in ids_of(case.spike.blamed) if isinstance(one, str))
    lengths = [tokens for tokens in known if tokens is not None]
    if not lengths:
        return
    usual = np.asarray(case.history.lengths)
    if len(usual) < MIN_LENGTHS:
        yield unknown("length", f"only {len(usual)} steps with known lengths")
        return
    longest = max(lengths)
    p = float(np.mean(usual >= longest))
    if p <= RARE:
        yield Cause(
            "length",
            f"its longest sample has {longest} tokens; {1 - p:.0%} of steps have none as long",
            1.0 - p,
            {"length": longest, "median": float(np.median(usual)), "p": p},
        )


def small_batch(case: Case) -> Iterator[Cause]:
    """A step of half the usual number of samples or less: the last of an epoch, most often."""
    mine = _size(case.facts.batches)
    usual = [size for past in case.history.steps if (size := _size(past.batches))]
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


def _size(batches: Sequence[BatchRef]) -> int:
    return sum(len(batch.sample_ids or ()) for batch in batches)


TESTS: tuple[CauseTest, ...] = (same_samples, source, length, small_batch)
