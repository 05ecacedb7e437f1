"""From a step whose values have arrived to a `StepRecord`; in the background thread."""

from __future__ import annotations

from collections.abc import Callable

from gradtrace.assemble.clipping import Sorted, clip_of, covers, known_norm, sort_out
from gradtrace.assemble.handmade import HandMade
from gradtrace.assemble.readings import (
    ParameterTables,
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
        self._hand_made = HandMade()

    def late(self, log: LateLog) -> dict[str, float]:
        """The values of a late `trace.log`."""
        return {name: known(value) for name, value in log.values.items()}

    def leftovers(self, item: Leftovers) -> list[Discard]:
        """What was thrown away at the end of a run."""
        return [self._discard(lost, item.readable) for lost in item.lost]

    def record(self, step: Step) -> StepRecord:
        """The record of one step."""
        found = Sorted(None if step.unread else joined(step, "gradients"))
        if step.readable:
            found = sort_out(step.clips, found.rows, self._hand_made)
        norms, weights = found.rows, joined(step, "weights")
        clip = clip_of(found)
        grad_norm = None if norms is None else l2(norms[1])
        if grad_norm is not None and not any(call.inferred for call in step.clips):
            self._hand_made.untouched(grad_norm)
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
            histograms=self._histograms(step, found),
            logged=logged,
            rank=step.rank,
            overhead=step.overhead,
            remarks=tuple(sorted(step.remarks)),
            skipped=step.skipped or any(flag.number > 0 for flag in step.found_inf),
            discarded=tuple([self._discard(lost, step.readable) for lost in step.lost]),
        )

    def _histograms(self, step: Step, sorted_: Sorted) -> LayerHistograms | None:
        """Of all layers whose gradients were read, or None; an error costs nothing else.

        They were counted before the loop's own code could rescale the gradients: by one factor, it
        moves the limits; in another way, it makes them those of gradients that nobody used.
        """
        read, factor = sorted_.rows, sorted_.factor
        if not step.histograms or not step.readable or read is None or factor is None:
            return None
        try:
            found = histograms_of(step)
            if factor != 1.0:
                for row in found.values():
                    row[0] *= factor
        except Exception as error:
            if self._failed is None:
                raise
            self._failed("the assembly of histograms", error)
            return None
        # Sums over some layers of a group would be wrong, and nobody could tell.
        whole = set(read[0].tolist()) <= found.keys()
        return layer_histograms(step.names, found) if whole else None

    def _discard(self, lost: Lost, readable: bool) -> Discard:
        """What was thrown away, in numbers."""
        losses = [
            part.loss.number * part.divisor
            for part in lost.parts
            if part.loss is not None and readable
        ]
        measured = [rows_of(readings) for _, readings in lost.tables]
        norm: float | None = None
        if readable:
            found = sort_out(lost.clips, merged(measured) if measured else None, self._hand_made)
            if found.rows is not None:
                norm = l2(found.rows[1])
            elif lost.clips:
                norm = known_norm(lost.clips[0])
        return Discard(
            time=lost.ended,
            loss=sum(losses) / len(losses) if losses else None,
            norm=norm,
            batches=tuple([batch_ref(batch) for part in lost.parts for batch in part.batches]),
        )


def _part(part: Part, refs: dict[int, BatchRef], readable: bool) -> MicroBatch:
    loss = part.loss.number * part.divisor if part.loss is not None and readable else None
    return MicroBatch(loss, part.divisor, tuple([refs[id(batch)] for batch in part.batches]))


def batch_ref(batch: Batch) -> BatchRef:
    """The batch with its ids as plain ints and strings."""
    return BatchRef(batch.epoch, batch.batch_index, batch.ordinal, plain(batch.sample_ids))
