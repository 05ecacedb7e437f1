"""From a step whose values have arrived to a `StepRecord`; in the background thread."""

from __future__ import annotations

from collections.abc import Callable

from gradtrace.assemble.clipping import clip_of, covers, known_norm, sort_out
from gradtrace.assemble.readings import (
    ParameterTables,
    Rows,
    histograms_of,
    joined,
    layer_histograms,
    merged,
    module_table,
    rows_of,
)
from gradtrace.handover.ids import plain
from gradtrace.handover.step import Batch, LateLog, Leftovers, Lost, Part, Step
from gradtrace.measure.reading import known
from gradtrace.measure.rows import l2
from gradtrace.records import BatchRef, Discard, LayerHistograms, MicroBatch, StepRecord


class Assembler:
    """Makes records, in order. Keeps only what the next record needs from the last.

    Whole-table numpy calls, about 0.1 ms a step: the GIL is the training thread's. `failed` is told
    of errors that cost a part of a record only; without it they are raised.
    """

    def __init__(self, failed: Callable[[str, Exception], None] | None = None) -> None:
        self._failed = failed
        self._last_time: float | None = None
        self._tables = ParameterTables()

    def late(self, log: LateLog) -> dict[str, float]:
        """The values of a late `trace.log`."""
        return {name: known(value) for name, value in log.values.items()}

    def leftovers(self, item: Leftovers) -> list[Discard]:
        """What was thrown away at the end of a run."""
        return [discard_of(lost, item.readable) for lost in item.lost]

    def record(self, step: Step) -> StepRecord:
        """The record of one step."""
        norms = joined(step, "gradients")
        calls, norms = sort_out(step.clips, norms) if step.readable else ([], norms)
        weights = joined(step, "weights")
        clip = clip_of(calls, norms)
        grad_norm = None if norms is None else l2(norms[1])
        if grad_norm is None and covers(step):
            grad_norm = known_norm(step.clips[0])
        seconds = None if self._last_time is None else step.ended - self._last_time
        self._last_time = step.ended
        refs = {id(batch): batch_ref(batch) for batch in step.batches}
        parts = tuple([_part(part, refs, step.readable) for part in step.parts])
        losses = tuple([part.loss for part in parts if part.loss is not None])
        logged = {name: known(value) for name, value in step.logged.items()}
        loss = sum(losses) / len(losses) if losses else None
        return StepRecord(
            step=step.number,
            time=step.ended,
            seconds=seconds,
            loss=logged.get("loss", loss),
            losses=losses,
            lr=tuple([known(value) for value in step.lr]),
            grad_norm=grad_norm if step.readable else None,
            clip=clip,
            batches=tuple(refs.values()),
            parts=parts,
            scale=None if step.divisor is None else step.divisor.number,
            gradients=self._tables.moments(step, norms),
            weights=self._tables.moments(step, weights),
            activations=module_table(step, "activations", with_range=True),
            output_gradients=module_table(step, "output_gradients", with_range=False),
            updates=self._tables.updates(step, joined(step, "updates"), weights),
            histograms=self._histograms(step, norms),
            logged=logged,
            rank=step.rank,
            overhead=step.overhead,
            remarks=tuple(sorted(step.remarks)),
            skipped=step.skipped or any(flag.number > 0 for flag in step.found_inf),
            discarded=tuple([discard_of(lost, step.readable) for lost in step.lost]),
        )

    def _histograms(self, step: Step, read: Rows | None) -> LayerHistograms | None:
        """Of all layers whose gradients were read, or None; an error costs nothing else."""
        if not step.histograms or not step.readable or read is None:
            return None
        try:
            found = histograms_of(step)
        except Exception as error:
            if self._failed is None:
                raise
            self._failed("the assembly of histograms", error)
            return None
        # Sums over some layers of a group would be wrong, and nobody could tell.
        whole = set(read[0].tolist()) <= found.keys()
        return layer_histograms(step.names, found) if whole else None


def discard_of(lost: Lost, readable: bool) -> Discard:
    """What was thrown away, in numbers."""
    losses = [part.loss.number for part in lost.parts if part.loss is not None and readable]
    measured = [rows_of(readings) for _, readings in lost.tables]
    calls, rows = sort_out(lost.clips, merged(measured) if measured else None)
    clip = clip_of(calls, rows)
    norm = l2(rows[1]) if rows is not None else None if clip is None else clip.norm_before
    return Discard(
        time=lost.ended,
        loss=sum(losses) / len(losses) if losses else None,
        norm=norm if readable else None,
        batches=tuple([batch_ref(batch) for part in lost.parts for batch in part.batches]),
    )


def _part(part: Part, refs: dict[int, BatchRef], readable: bool) -> MicroBatch:
    loss = part.loss.number * part.divisor if part.loss is not None and readable else None
    return MicroBatch(loss, part.divisor, tuple([refs[id(batch)] for batch in part.batches]))


def batch_ref(batch: Batch) -> BatchRef:
    """The batch with its ids as plain ints and strings."""
    return BatchRef(batch.epoch, batch.batch_index, batch.ordinal, plain(batch.sample_ids))
