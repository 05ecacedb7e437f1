"""The open step and the pieces before it: where a step begins, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.optim import Optimizer

from gradtrace.collect.ledger import Ledger
from gradtrace.collect.measuring import Note
from gradtrace.collect.optimizers import Owners
from gradtrace.collect.outputs import Outputs
from gradtrace.collect.rounds import Piece, Rounds
from gradtrace.collect.schedule import Schedule
from gradtrace.handover.step import Step
from gradtrace.measure.parameters import Parameters
from gradtrace.sampling import Due

MOST = 1024
"""Uses of gradients that one step is made of; where more would join it, it is closed."""

_MOST_KEYS = 64


class Borders:
    """Opens pieces of steps, joins them, and has `seal` told of each step. Training thread.

    A piece is one use of gradients. Whether several make a step is for `Rounds` to say, unless
    they used gradients of one backward.
    """

    def __init__(
        self,
        parameters: Parameters,
        schedule: Schedule,
        *,
        owners: Owners,
        ledger: Ledger,
        outputs: Outputs,
        seal: Callable[[Step], None],
        step_after: Optimizer | None,
        note: Note = lambda source, message: None,
    ) -> None:
        self._parameters = parameters
        self._schedule = schedule
        self._owners = owners
        self._ledger = ledger
        self._outputs = outputs
        self._seal = seal
        self._rounds = Rounds(step_after)
        self._note = note
        self.by_hand = False
        """Whether the user closes steps; then no optimizer's step does."""
        self.pieces: list[Piece] = []
        """Those that have ended and may be of the open step."""
        self._trainable = self._trained_now()
        self._on_open: list[Callable[[Due], None]] = []
        # By positions: how many of the pieces have forgotten their gradients there.
        self._forgotten: dict[tuple[int, ...], int] = {}
        self.begin()

    def on_open(self, callback: Callable[[Due], None]) -> None:
        """Has `callback` told what each step will measure, from the present one on."""
        self._on_open.append(callback)
        callback(self.open.due)

    def begin(self) -> None:
        """Opens a piece."""
        self._own = due = self._schedule.due(self._schedule.step + len(self.pieces))
        if self.before is not None:
            # The open piece may be of its step, and what is due is measured in all of a step; what
            # was due in those before it is due in the last of them.
            due = Due(*(one or other for one, other in zip(due, self.before.due, strict=True)))
        self.open = Step(due)
        self.measure_anew()

    def measure_anew(self) -> None:
        """Forgets what was summed up in the open piece so far."""
        self._outputs.start()
        for callback in self._on_open:
            callback(self.open.due)

    @property
    def before(self) -> Step | None:
        """The piece before the open one, which may be of the same step."""
        return self.pieces[-1].step if self.pieces else None

    def forget(self, positions: Sequence[int]) -> None:
        """Gradients at these positions were thrown away: what the pieces have read of them is void.

        Each piece is told once, so that the cost does not grow with the pieces.
        """
        if self.pieces:
            key = tuple(positions)
            for piece in self.pieces[self._forgotten.get(key, 0) :]:
                piece.step.forget(positions)
            if len(self._forgotten) >= _MOST_KEYS:
                self._forgotten.clear()
            self._forgotten[key] = len(self.pieces)

    def join(self, optimizer: Optimizer, positions: Sequence[int]) -> None:
        """An optimizer is about to step: in the open piece, or in the one before."""
        if not self.pieces:
            return
        shared = {part.number for part in self._ledger.parts(positions)}
        piece = self.pieces[-1]
        last = piece.step
        same = any(part.number in shared for part in last.parts)  # gradients of the same backward
        over = not self.by_hand and self._rounds.over(optimizer, self.pieces, positions)
        if over and same and not piece.has(optimizer):
            # The round ended before that backward.
            self.pieces.pop()
            self.close(optimizer)
            self.pieces.append(piece)
            over = False
        if over:
            self.close(optimizer)
            self._own = self._schedule.due(self._schedule.step)
            self.open.narrow(self._own)
        elif same:
            last.absorb(self.open)
            self.open = last
            self._own = self.pieces.pop().own
            self._forgotten.clear()

    def end(self, *, complete: bool | None = None) -> None:
        """A piece ends, and the step with it: if `complete`, None for what the rounds say."""
        self._outputs.put_into(self.open)
        self.pieces.append(Piece(self.open, self._own))
        if complete is None:
            complete = not self.by_hand and self._rounds.complete(self.pieces, self._moved_all)
        if len(self.pieces) >= MOST and not complete:
            complete = True
            self._note(
                "steps",
                f"gradients were used {MOST:,} times and nothing has ended the step: such a step "
                f"is closed after {MOST:,}; call trace.step() where each step ends, or pass the "
                "optimizer that steps last in each as gradtrace(..., step_after=...)",
            )
        if complete:
            self.close()
        self.begin()

    def close(self, trigger: Optimizer | None = None) -> None:
        """Seals the ended pieces, as one step or as several; `trigger` as in `Rounds.steps`."""
        pieces, self.pieces = self.pieces, []
        self._forgotten.clear()
        for step in self._rounds.steps(pieces, trigger, whole=self.by_hand):
            self._seal(step)

    def _moved_all(self) -> bool:
        """Whether the optimizers of the open pieces hold all parameters that were ever trained."""
        moved: set[int] = set()
        for piece in self.pieces:
            for ref in piece.step.stepped:
                optimizer = ref()
                if optimizer is not None:
                    moved.update(self._owners.positions_of(optimizer))
        self._trainable |= self._trained_now()
        return moved >= self._trainable

    def _trained_now(self) -> set[int]:
        return {i for i, p in enumerate(self._parameters.tensors) if p.requires_grad}
