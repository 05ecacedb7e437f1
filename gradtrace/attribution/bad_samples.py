"""The samples and batches a run's spikes were traced to, as a list that can be acted on.

A sample is listed for one of two reasons. Measured: `trace.suspects` fetched a spike's samples, and
this one stood far out. Recurring: it was in several spikes and never in a step without one, and no
other sample explains those spikes; one that shared its batches with a listed sample is not
listed for that, its spikes are explained already. Batches are listed where samples are not known.
Which batches are behind a spike, `Spike.blamed` says.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from gradtrace.attribution.suspects import read_suspects
from gradtrace.detect.spikes.detector import latest_spikes
from gradtrace.records import SampleId, Spike
from gradtrace.runlog.reader import Run, load_run

LEAST_VISITS = 2
CALM_VISITS = 0.2
"""A sample that was in a larger share of steps without a spike is not the cause of those with."""


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample to leave out. `why` is "measured" or "recurring", `steps` are those of its spikes.

    `visits` counts the steps it took part in after the warm-up of spike detection, as far as the
    run log has them. `loss_ratio` and
    `norm_ratio` are the largest that were measured, relative to the other samples of the spike.
    """

    id: SampleId
    why: str
    steps: tuple[int, ...]
    visits: int
    loss_ratio: float | None = None
    norm_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class BadBatch:
    """A batch whose samples are not known. `step`, `signal` and `ratio` are its spike's."""

    epoch: int
    batch_index: int
    ordinal: int
    step: int
    signal: str
    ratio: float


@dataclass(frozen=True, slots=True)
class BadList:
    """What `gradtrace bad-batches` writes; the arguments of `SkipSamples` and `SkipBatches`."""

    run: str
    spikes: int
    samples: tuple[BadSample, ...] = ()
    batches: tuple[BadBatch, ...] = ()
    unexplained: tuple[int, ...] = field(default=())
    """Steps of spikes that have sample ids but no sample to blame yet."""

    def to_json(self) -> str:
        """The list as JSON, indented."""
        return json.dumps(asdict(self), indent=2) + "\n"


def find_bad(run: Run | str | os.PathLike[str]) -> BadList:
    """The bad samples and batches of a run, finished or not. Reads all of its steps.

    `run` is a `Run` or the path of a run directory. Raises TypeError for anything else, ValueError
    for a path that holds no run.
    """
    if not isinstance(run, Run):
        run = load_run(run)
    spikes = latest_spikes(run.events)
    by_step: dict[int, list[Spike]] = defaultdict(list)
    for spike in spikes:
        by_step[spike.step].append(spike)
    ids = {step: _ids(some) for step, some in by_step.items()}
    visits = _visits(run, set().union(*ids.values())) if ids else {}
    found = _measured(run, visits, ids)
    explained = {step for bad in found for step in bad.steps}
    puzzling = {step: some for step, some in ids.items() if step not in explained}
    blamed = {spike.blamed_step for step in puzzling for spike in by_step[step] if spike.blamed}
    found += _recurring(puzzling, visits, blamed | puzzling.keys())
    explained = {step for bad in found for step in bad.steps}
    batches = [b for step, some in by_step.items() if not ids[step] for b in _batches(some)]
    return BadList(
        run=str(run.info.get("name", run.path.name)),
        spikes=len(by_step),
        samples=tuple(sorted(found, key=lambda bad: (-len(bad.steps), str(bad.id)))),
        batches=tuple(batches),
        unexplained=tuple(sorted(s for s, i in ids.items() if i and s not in explained)),
    )


def _ids(spikes: list[Spike]) -> set[SampleId]:
    """The samples that may be behind the spikes of one step."""
    batches = [batch for spike in spikes for batch in spike.blamed]
    return {sample for batch in batches for sample in batch.sample_ids or ()}


def _batches(spikes: list[Spike]) -> Iterable[BadBatch]:
    """The batches behind the spikes of one step, each with the first spike it is blamed for."""
    found: dict[int, BadBatch] = {}
    for spike in spikes:
        for b in spike.blamed:
            bad = BadBatch(b.epoch, b.batch_index, b.ordinal, spike.step, spike.signal, spike.ratio)
            found.setdefault(b.ordinal, bad)
    return found.values()


def _visits(run: Run, wanted: set[SampleId]) -> dict[SampleId, list[int]]:
    """The steps that each of `wanted` took part in."""
    visits: dict[SampleId, list[int]] = defaultdict(list)
    for step, ids in _consumed(run):
        for sample in wanted.intersection(ids):
            visits[sample].append(step)
    return visits


def _consumed(run: Run) -> Iterator[tuple[int, set[SampleId]]]:
    """Each step with the ids of its samples, from the first that was judged.

    A bad sample's visit during the warm-up of spike detection was no calm one: nobody looked.
    """
    table = run.steps
    steps, texts = table.column("step").to_pylist(), table.column("batches").to_pylist()
    scores = (json.loads(text or "{}") for text in table.column("scores").to_pylist())
    first = next((i for i, found in enumerate(scores) if any(found.values())), 0)
    for step, text in zip(steps[first:], texts[first:], strict=True):
        yield step, {i for *_, ids in json.loads(text or "[]") for i in ids or ()}


def _measured(
    run: Run, visits: dict[SampleId, list[int]], ids: dict[int, set[SampleId]]
) -> list[BadSample]:
    """Samples that stood out when a spike's samples were measured: the first of each spike."""
    seen: dict[SampleId, list[tuple[int, float, float]]] = defaultdict(list)
    for suspects in read_suspects(run.path):
        if len(suspects) and suspects[0].stands_out:
            first = suspects[0]
            seen[first.sample_id].append((suspects.step, first.loss_ratio, first.norm_ratio))
    return [
        BadSample(
            id=sample,
            why="measured",
            steps=tuple(sorted({s for s, _, _ in some} | {s for s in ids if sample in ids[s]})),
            visits=len(visits.get(sample, ())),
            loss_ratio=max(loss for _, loss, _ in some),
            norm_ratio=max(norm for _, _, norm in some),
        )
        for sample, some in seen.items()
    ]


def _recurring(
    ids: dict[int, set[SampleId]], visits: dict[SampleId, list[int]], troubled: set[int]
) -> list[BadSample]:
    """Greedily, the sample that explains most spikes, as long as no other explains as many.

    Visits at `troubled` steps were no calm ones: those of the spikes, and of what they are put
    down to.
    """
    left = dict(ids)
    found: list[BadSample] = []
    while left:
        counts: dict[SampleId, list[int]] = defaultdict(list)
        for step, samples in left.items():
            for sample in samples:
                counts[sample].append(step)
        candidates = {
            sample: steps
            for sample, steps in counts.items()
            if len(steps) >= LEAST_VISITS
            and len(set(visits.get(sample, steps)) - troubled)
            <= CALM_VISITS * len(visits.get(sample, steps))
        }
        if not candidates:
            return found
        most = max(len(steps) for steps in candidates.values())
        best = [sample for sample, steps in candidates.items() if len(steps) == most]
        clear = [
            sample
            for sample in best
            if all(
                other == sample or _apart(set(candidates[sample]), set(candidates[other]))
                for other in best
            )
        ]
        if not clear:
            return found
        for sample in clear:
            steps = candidates[sample]
            found.append(
                BadSample(sample, "recurring", tuple(steps), len(visits.get(sample, steps)))
            )
            for step in steps:
                left.pop(step, None)
    return found


def _apart(mine: set[int], others: set[int]) -> bool:
    """Whether a sample can be told from another that explains as many spikes.

    It can if they share none, or if it recurs in spikes which the other has no part in.
    """
    return not mine & others or len(mine - others) >= LEAST_VISITS
