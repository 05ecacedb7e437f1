"""A loop that is busy while no step is recorded is told why, while it runs.

Ten seconds of backwards that reach the traced parameters, of changes of these, or of delivered
batches, without a record are a note. It says what was seen, what was not, and the line that mends
it; where what was seen may be just what the user wants (an evaluation with gradients, Fisher
information) it says that too. A step that takes long is none of this: time counts only while
something happens again and again, and a run whose records come slowly is given three times as long.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gradtrace.session.activity import Activity

QUIET = 10.0
"""Seconds of activity without a record that are told."""
LONG = 120.0
"""The same where a plain explanation is a step that is still under way."""
MANY = 256
"""Backwards added up in one step beyond which QUIET is enough there too."""
FEW = 4
"""Fewer events than these say nothing, however long they took."""
GAP = 2.5
"""Seconds that count at most between two signs of activity: nobody is busy while a notebook waits
for its user."""
_KINDS = ("backwards", "others", "moved", "batches")
_REMEMBERED = 8


class Silent(NamedTuple):
    """What happened since the last record, and for how long it went on."""

    now: Activity
    backwards: int
    others: int
    elsewhere: int
    lost: int
    moved: int
    strangers: int
    batches: int
    marks: int
    busy: dict[str, float]
    patience: float

    def lasting(self, kind: str, seconds: float = 0.0) -> bool:
        """Whether one kind of activity has gone on for longer than is usual, and for `seconds`."""
        count: int = getattr(self, kind)
        return count >= FEW and self.busy[kind] >= max(self.patience, seconds)


Why = tuple[str, str]
"""The source of a note, and its text."""
WAIT: Why = ("", "")
"""There is an explanation, and nothing to tell yet."""
Reason = Callable[[Silent], Why | None]


@dataclass(slots=True)
class _Span:
    """How long one kind of activity has gone on since the last record."""

    count: int
    active: float
    busy: float = 0.0

    def see(self, count: int, at: float) -> None:
        if count != self.count:
            self.count = count
            self.busy += min(at - self.active, GAP)
            self.active = at


class Silence:
    """Looks at the activity each tick. Background thread; each reason is told once in a run.

    `reasons` are asked in order, and the first that has an answer is believed.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        reasons: tuple[Reason, ...] | None = None,
    ) -> None:
        self._clock = clock
        self._reasons = REASONS if reasons is None else reasons
        self._told: set[Reason] = set()
        self._begin: Activity | None = None
        self._spans: dict[str, _Span] = {}
        # How long the last records took, in seconds of activity.
        self._usual: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def told(self) -> bool:
        """Whether any reason was."""
        return bool(self._told)

    def look(self, now: Activity) -> Why | None:
        """What is to be said about the silence up to now; None while there is nothing to say."""
        at, begin = self._clock(), self._begin
        if begin is None or _progress(now) != _progress(begin):
            if begin is not None:
                self._usual.append(max(span.busy for span in self._spans.values()))
            self._begin = now
            self._spans = {kind: _Span(getattr(now, kind), at) for kind in _KINDS}
            return None
        for kind, span in self._spans.items():
            span.see(getattr(now, kind), at)
        silent = Silent(
            now,
            now.backwards - begin.backwards,
            now.others - begin.others,
            now.elsewhere - begin.elsewhere,
            now.lost - begin.lost,
            now.moved - begin.moved,
            now.strangers - begin.strangers,
            now.batches - begin.batches,
            now.marks - begin.marks,
            {kind: span.busy for kind, span in self._spans.items()},
            max([QUIET, *(3 * seconds for seconds in self._usual)]),
        )
        for reason in self._reasons:
            why = reason(silent)
            if why is not None:
                if why is WAIT or reason in self._told:
                    return None
                self._told.add(reason)
                return why
        return None


def _progress(now: Activity) -> tuple[int, int]:
    """What changes with a record, or with a use of gradients that will be part of one."""
    held = bool(now.marks or now.step_after)  # then such uses may pile up for ever
    return now.records, 0 if held else now.pieces


def _since(silent: Silent) -> str:
    if silent.now.records:
        return f"since step {silent.now.records - 1} no step was recorded"
    return "no step was recorded so far"


def _nothing_to_close(silent: Silent) -> Why | None:
    if silent.marks < FEW or not silent.lasting("moved"):
        return None
    return "steps", (
        f"{_since(silent)}: trace.step() was called {silent.marks:,} times, and nothing was "
        "delivered, computed or logged before it, so it closed nothing: say what the loss is with "
        "trace.log(loss=...) before each, or loop over trace.batches(loader)"
    )


def _by_hand(silent: Silent) -> Why | None:
    if not silent.now.marks or not (silent.lasting("backwards") or silent.lasting("moved")):
        return None
    return "steps", (
        f"{_since(silent)}: trace.step() was called before, so nothing else ends a step, and it "
        f"was not called again while {silent.backwards:,} backwards reached this model: call "
        "trace.step() where each step ends, or nowhere if a torch optimizer steps"
    )


def _step_after(silent: Silent) -> Why | None:
    named = silent.now.step_after
    if not named or not silent.lasting("backwards", QUIET if silent.now.pieces else LONG):
        return None
    others = ", and others have" if silent.now.pieces else ""
    return "steps", (
        f"{_since(silent)}: step_after, a {named}, has not stepped while {silent.backwards:,} "
        f"backwards reached this model{others}, and only it ends a step: pass the optimizer that "
        "steps last in each step as gradtrace(..., step_after=...), or leave step_after out"
    )


def _closure(silent: Silent) -> Why | None:
    if not silent.now.in_closure:
        return None
    if not silent.lasting("backwards", LONG):
        return WAIT
    return "steps", (
        f"{_since(silent)}: an optimizer has evaluated its closure {silent.backwards:,} times and "
        "its step has not returned: the record comes when it does; max_iter and max_eval of the "
        "optimizer bound it"
    )


def _moved(silent: Silent) -> Why | None:
    if not silent.lasting("backwards") or silent.moved < FEW:
        return None
    return "steps", (
        f"{_since(silent)}: {silent.backwards:,} backwards reached this model and its parameters "
        f"have changed, but no torch optimizer that holds them has stepped{_strangers(silent)}: "
        "call trace.step() where a step ends, after the parameters were moved"
    )


def _not_held(silent: Silent) -> Why | None:
    if not silent.lasting("backwards") or silent.strangers < FEW:
        return None
    return "steps", (
        f"{_since(silent)}: {silent.backwards:,} backwards reached this model, but no torch "
        f"optimizer that holds its parameters has stepped{_strangers(silent)}: if one of those "
        "was meant for this model, make it over the parameters that the model has now, "
        "Optimizer(model.parameters()); if code of the loop moves them, call trace.step() there"
    )


def _let_go(silent: Silent) -> Why | None:
    if not silent.lasting("backwards") or silent.lost < FEW:
        return None
    return "steps", (
        f"{_since(silent)}: {silent.backwards:,} backwards reached this model, their gradients "
        "were let go again, and no torch optimizer has used them: where they were only looked at, "
        "or batches were dropped, nothing is missing; where code of the loop moved the parameters "
        "by them, call trace.step() there"
    )


def _adding_up(silent: Silent) -> Why | None:
    if not silent.lasting("backwards", QUIET if silent.backwards >= MANY else LONG):
        return None
    return "steps", (
        f"{_since(silent)}: {silent.backwards:,} backwards reached this model and no torch "
        "optimizer has stepped since: while gradients are added up that is as it should be, and "
        "the record comes with the step; where code of the loop moved the parameters, call "
        "trace.step() there"
    )


def _others(silent: Silent) -> Why | None:
    # Later on, other models may well be trained for a while.
    if silent.now.records or silent.backwards or not silent.lasting("others"):
        return None
    if silent.now.frozen:
        return "steps", (
            f"{_since(silent)}: {silent.others:,} backwards reached no parameter of this model, "
            "all of which are frozen (requires_grad=False): trace the part that is trained, "
            "gradtrace(part), or unfreeze some of them before the loop"
        )
    return "steps", (
        f"{_since(silent)}: all {silent.others:,} backwards reached other parameters only: is this "
        "the model that is trained, and not a copy of it (deepcopy, an average, another process's "
        "replica)? gradtrace(model) takes the one whose parameters the optimizer holds"
    )


def _elsewhere(silent: Silent) -> Why | None:
    if silent.now.shared:
        return WAIT  # told when it began
    if silent.elsewhere < FEW or silent.backwards or not silent.lasting("moved"):
        return None
    return "threads", (
        f"{_since(silent)}: the parameters have changed and {silent.elsewhere:,} backwards ran, "
        "but in another thread than the one that began the trace, where gradients are not looked "
        "at until a torch optimizer of this model steps: enter gradtrace(...) in the thread that "
        "trains, and call trace.step() there where a step ends"
    )


def _changed(silent: Silent) -> Why | None:
    if silent.backwards or silent.others or silent.elsewhere or not silent.lasting("moved"):
        return None
    return "steps", (
        f"{_since(silent)}: the parameters were changed again and again by code that is no torch "
        "optimizer, and no backward was seen: where that is training (an evolution strategy, "
        "gradients of torch.autograd.grad or torch.func), call trace.step() where a step ends and "
        "trace.log(loss=...) before it; a probe of the weights needs nothing"
    )


def _delivered(silent: Silent) -> Why | None:
    seen = silent.backwards or silent.others or silent.moved
    if silent.now.records or seen or not silent.lasting("batches"):
        return None
    return "steps", (
        f"{_since(silent)}: {silent.batches:,} batches were delivered with gradients enabled, and "
        "neither a backward nor an optimizer step was seen in this thread: where they are only "
        "looked at, nothing is missing; where gradients come from torch.autograd.grad or "
        "torch.func, call trace.step() where a step ends"
    )


def _strangers(silent: Silent) -> str:
    if not silent.strangers:
        return ""
    return f" ({silent.strangers:,} steps were of optimizers that hold others)"


REASONS: tuple[Reason, ...] = (
    _nothing_to_close,
    _by_hand,
    _step_after,
    _closure,
    _moved,
    _not_held,
    _let_go,
    _adding_up,
    _others,
    _elsewhere,
    _changed,
    _delivered,
)
"""From what is known best to what is guessed; one that knows better goes before the others."""
