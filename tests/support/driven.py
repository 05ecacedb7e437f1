"""A collector without a session: a loop tells it by hand what taps would."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from gradtrace.assemble.assembler import Assembler
from gradtrace.collect.batches import Batches
from gradtrace.collect.collector import Collector
from gradtrace.collect.schedule import Schedule
from gradtrace.handover.handoff import Handoff
from gradtrace.handover.step import Batch, ClipCall, Handed, Step
from gradtrace.measure.parameters import Parameters
from gradtrace.measure.reading import Pending
from gradtrace.records import Array, StepRecord
from gradtrace.sampling import Sampling

EVERYTHING = Sampling(activations=1, updates=1, histograms=1)


class Driven:
    """The way of a step from a loop to its record, in one thread."""

    def __init__(
        self,
        model: nn.Module,
        sampling: Sampling = EVERYTHING,
        *,
        overhead: Callable[[], float] = float,
        step_after: Optimizer | None = None,
    ) -> None:
        self.model = model
        self.notes: list[str] = []
        self.schedule = Schedule(sampling)
        self.handoff: Handoff[Handed] = Handoff()

        def note(source: str, text: str) -> None:
            self.notes.append(f"{source}: {text}")

        self.batches = Batches(None, note)
        self._stream = self.batches.begin(self)
        self.collector = Collector(
            Parameters({"": model}, sampling),
            self.schedule,
            self.handoff,
            batches=self.batches,
            rank=3,
            overhead=overhead,
            note=note,
            step_after=step_after,
        )
        self._assembler = Assembler()

    def batch(self, *sample_ids: int) -> Batch:
        """Delivers the next batch of the only loader."""
        self.collector.delivered()
        self.batches.delivered(self._stream, sample_ids, None)
        return self._stream.held[-1].batch

    def backward(self, loss: Tensor, scale: Tensor | None = None, *, retain: bool = False) -> None:
        before = self.collector.before_backward()
        (loss if scale is None else loss * scale).backward(retain_graph=retain)
        self.collector.after_backward(before, loss.detach().clone(), scale)

    def clip_norm(self, limit: float, parameters: Sequence[nn.Parameter] | None = None) -> None:
        given = list(self.model.parameters()) if parameters is None else parameters
        positions = self.collector.before_clip(given)
        total = clip_grad_norm_(given, limit)
        if positions:
            self.collector.after_clip(ClipCall("norm", positions, limit, Pending(total.clone())))

    def clip_value(self, limit: float) -> None:
        given = list(self.model.parameters())
        positions = self.collector.before_clip(given)
        clip_grad_value_(given, limit)
        self.collector.after_clip(ClipCall("value", positions, limit))

    def zero(self, owner: Optimizer | nn.Module, *, to_none: bool = True) -> None:
        owner.zero_grad(set_to_none=to_none)
        self.collector.zeroed(owner)

    def step(self, optimizer: Optimizer) -> None:
        self.collector.before_step(optimizer, closure=False, in_backward=False)
        optimizer.step()
        self.collector.after_step(optimizer, closure=False, in_backward=False)

    def taken(self) -> list[Handed]:
        """What was handed over, with its values."""
        return self.handoff.take()

    def records(self) -> list[StepRecord]:
        """The records of all steps handed over since the last call."""
        return [self._assembler.record(item) for item in self.taken() if isinstance(item, Step)]


def values(tensor: Tensor) -> Array:
    """A tensor's values as they are now, float64."""
    copied: Array = tensor.detach().double().numpy().copy()
    return copied
