"""What each gradient is made of: the backwards it was summed from, and whether it has been used.

The state of a gradient is known after every backward: which tensor it is and that tensor's version.
What differs at the next look was done by the loop: set to None or zeroed, it was thrown away;
replaced or changed in place, it was worked on. So losses, batches and clips go with the gradients
they led to, and with nothing else.

Versions are scanned rather than hooks put on parameters: a scan costs 0.2 us a parameter and
leaves nothing behind, `register_post_accumulate_grad_hook` 0.7 to 1.2 us a parameter and backward,
and it does not fire for gradients that a wrapper sets (FSDP). A scan may only run in the thread
that trains these parameters, see `Trainer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import is_

import torch
from torch import Tensor

from gradtrace.collect.states import ABSENT, Grad, States, all_absent
from gradtrace.handover.step import Part
from gradtrace.measure.flat import local
from gradtrace.measure.parameters import Parameters
from gradtrace.taps.fsdp import HeldBack

MOST = 1024
"""Backwards that a sum remembers; of longer ones the newest."""


class Account:
    """The sum of some backwards, held by `holders` gradients; `used` by an optimizer."""

    __slots__ = ("holders", "parts", "used")

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.holders = 0
        self.used = False


@dataclass(slots=True)
class Changes:
    """What a look at the gradients found to have happened since the last one."""

    dropped: list[int] = field(default_factory=list)
    """Positions whose gradients were thrown away: removed, zeroed, or gone with a parameter."""
    lost: list[Part] = field(default_factory=list)
    """Backwards of which no gradient is left and none was used."""
    changed: list[int] = field(default_factory=list)
    """Positions whose gradients were changed or replaced by the loop's own code."""
    replaced: list[int] = field(default_factory=list)
    """Positions whose parameters are others now: what was known of their gradients is void."""
    cleared: list[int] = field(default_factory=list)
    """Positions whose gradients had been used, and are gone."""


class Ledger:
    """The accounts of all gradients. Training thread; O(parameters) Python once a backward."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._held_back = HeldBack((), ())
        self._accounts: list[Account | None] = []
        self._states = States()
        self._zeroed: set[int] = set()
        self._made: set[int] = set()
        self._unused = 0
        # By a part's number: how many sums hold it.
        self._sums: dict[int, int] = {}
        self._changes = Changes()
        self.overflown = False
        """Whether any sum was of more backwards than are remembered."""
        self.settle()

    def grow(self) -> Changes:
        """Makes room for parameters that were found since, and forgets those that are gone.

        O(1) while there are none. What has become of the forgotten ones' gradients is returned.
        """
        self._grow()
        changes, self._changes = self._changes, Changes()
        return changes

    def _grow(self) -> None:
        missing = len(self._parameters.tensors) - len(self._accounts)
        replaced = self._parameters.replaced
        if missing or replaced:
            self._held_back = HeldBack(self._parameters.models.values(), self._parameters.tensors)
        if missing:
            first = len(self._accounts)
            self._accounts += [None] * missing
            self._states.grow(missing)
            self.known(range(first, first + missing))
        if replaced:
            for i in sorted(replaced):
                account = self._accounts[i]
                if account is not None:
                    self._drop(i, account, self._changes)
            self.known(replaced)
            self._changes.replaced += sorted(replaced)
            self._parameters.replaced = set()

    def zeroed(self, positions: Iterable[int]) -> None:
        """These were zeroed by a `zero_grad`: what has changed in place is zero."""
        self._zeroed.update(positions)

    def settle(self) -> Changes:
        """Looks at all gradients, before a backward, and takes what they are now as known."""
        changes = self.grow()
        grads = self._grads()
        if not self._unused and all_absent(grads):
            # After a step and its `zero_grad`: nothing is left of anything.
            changes.cleared += [i for i, a in enumerate(self._accounts) if a is not None]
            self._accounts = [None] * len(grads)
            self._sums.clear()
            self._made.clear()
            self._states.forget_all()
        elif not self._states.all_known(grads):
            for i, grad in enumerate(grads):
                if not self._states.is_known(i, grad):
                    self._settle(i, grad, changes)
        self._zeroed.clear()
        return changes

    def _settle(self, position: int, grad: Grad, changes: Changes) -> None:
        """Something has happened to this gradient."""
        account = self._accounts[position]
        same = not self._states.learn(position, grad)
        # A gradient that was used and is written to was zeroed, whichever way.
        told = same and (position in self._zeroed or (account is not None and account.used))
        if isinstance(grad, Tensor) and not told and not _is_zero(grad):
            changes.changed.append(position)
            if not same:
                self._made.add(position)
            return
        self._made.discard(position)
        if account is not None:
            self._drop(position, account, changes)

    def _grads(self) -> list[Grad]:
        """What backwards add into, by position.

        Of a DTensor its local tensor: the version of the DTensor itself stays when that is written,
        as FSDP2 does while it accumulates.
        """
        # A call each is made where it matters only: this runs three times a step.
        grads: list[Grad] = [
            ABSENT if (grad := p.grad) is None else grad if type(grad) is Tensor else local(grad)
            for p in self._parameters.tensors
        ]
        self._held_back.into(grads)
        return grads

    def _grad(self, position: int) -> Grad:
        found = self._held_back.at(position) if self._held_back else None
        if found is None:
            found = self._parameters.tensors[position].grad
        return ABSENT if found is None else found if type(found) is Tensor else local(found)

    def _drop(self, position: int, account: Account, changes: Changes) -> None:
        self._accounts[position] = None
        account.holders -= 1
        if not account.used:
            self._unused -= 1
            changes.dropped.append(position)
        else:
            changes.cleared.append(position)
        if not account.holders:
            changes.lost += [part for part in self._let_go(account) if not part.used]

    def _let_go(self, account: Account) -> list[Part]:
        """No gradient is this sum any more; the backwards of which no gradient is left."""
        gone = []
        for part in account.parts:
            left = self._sums.pop(part.number) - 1
            if left:
                self._sums[part.number] = left
            else:
                gone.append(part)
        return gone

    def _new(self, parts: tuple[Part, ...]) -> Account:
        for part in parts:
            self._sums[part.number] = self._sums.get(part.number, 0) + 1
        return Account(parts)

    def written(self, part: Part) -> list[int]:
        """After a backward that followed a `settle`: the positions it wrote, now part of them."""
        self._grow()
        grads = self._grads()
        if not self._sums and self._states.nothing:
            positions = [i for i, grad in enumerate(grads) if grad is not ABSENT]
            self._made.clear()
            self._states.learn_all(grads)
            self._hold(positions, part)
            return positions
        positions = [i for i, grad in enumerate(grads) if not self._states.is_known(i, grad)]
        sums: dict[Account | None, Account] = {}
        written: list[int] = []
        for i in positions:
            grad = grads[i]
            if grad is ABSENT:
                continue  # a loop's own hook has removed it
            if self._states.learn(i, grad):
                self._made.discard(i)
            written.append(i)
            before = self._accounts[i]
            after = sums.get(before)
            if after is None:
                old = [] if before is None else [p for p in before.parts if not p.used]
                self.overflown |= len(old) >= MOST
                after = sums[before] = self._new((*old[1 - MOST :], part))
            if before is not None:
                before.holders -= 1
                if not before.holders:
                    self._let_go(before)
            if before is None or before.used:
                self._unused += 1
            after.holders += 1
            self._accounts[i] = after
        return written

    def _hold(self, positions: Sequence[int], part: Part) -> None:
        """Gradients that had no account are this backward's alone."""
        if positions:
            account = self._new((part,))
            account.holders = len(positions)
            for i in positions:
                self._accounts[i] = account
            self._unused += len(positions)

    def found(self, part: Part) -> list[int]:
        """After a backward that wrote no known gradient: those that it wrote of new parameters."""
        new = set(self._parameters.replaced) | set(
            range(len(self._accounts), len(self._parameters.tensors))
        )
        self._grow()
        positions = [i for i in sorted(new) if self._grad(i) is not ABSENT]
        self._hold(positions, part)
        return positions

    def glance(self, positions: Sequence[int]) -> tuple[bool, bool, list[int]]:
        """One look at some gradients: whether there are any, whether any waits to be used, and the
        positions of those that are not what they were at the last look.

        A gradient that was removed is not counted among the latter: `zero_grad` does that.
        """
        if len(positions) == len(self._accounts):
            grads = self._grads()
            if self._states.all_known(grads):
                return not all_absent(grads), self._unused > 0, []
        any_ = unused = False
        touched = []
        is_known = self._states.is_known
        for i in positions:
            account = self._accounts[i]
            if account is not None and not account.used:
                unused = True
            grad = self._grad(i)
            if grad is not ABSENT:
                any_ = True
                if not is_known(i, grad):
                    touched.append(i)
        return any_, unused, touched

    def known(self, positions: Collection[int]) -> None:
        """Takes these gradients as known: what has changed them is accounted for."""
        if len(positions) == len(self._accounts):
            grads = self._grads()
            absent = any(map(is_, grads, repeat(ABSENT)))
            if not absent and self._states.learn_versions(grads):
                return
        for i in positions:
            grad = self._grad(i)
            if grad is ABSENT:
                if self._accounts[i] is None:  # else it was thrown away, which is to be settled
                    self._states.learn(i, grad)
                    self._made.discard(i)
            elif self._states.learn(i, grad):
                self._made.add(i)

    def made(self, positions: Iterable[int]) -> bool:
        """Whether the loop put a gradient of its own making in the place of any of these."""
        return not self._made.isdisjoint(positions)

    def parts(self, positions: Iterable[int]) -> list[Part]:
        """The backwards that the gradients at `positions` were summed from, oldest first."""
        found: dict[int, Part] = {}
        for account in set(map(self._accounts.__getitem__, positions)):
            if account is not None:
                found |= {part.number: part for part in account.parts}
        return [found[number] for number in sorted(found)]

    def together(self, positions: Iterable[int]) -> list[int]:
        """The positions of all unused gradients that have a backward in common with these."""
        wanted = {part.number for part in self.parts(positions)}
        return [
            i
            for i, account in enumerate(self._accounts)
            if account is not None
            and not account.used
            and not wanted.isdisjoint(part.number for part in account.parts)
        ]

    def use(self, positions: Sequence[int]) -> list[Part]:
        """An optimizer uses these gradients; the backwards that no step has had yet."""
        parts = [part for part in self.parts(positions) if not part.used]
        holders = Counter(map(self._accounts.__getitem__, positions))
        for account, count in holders.items():
            if account is None or account.used:
                continue
            if count >= account.holders:
                account.used = True
                self._unused -= account.holders
            else:
                self._split(account, positions)
        for part in parts:
            part.used = True
        self._made.difference_update(positions)
        return parts

    def _split(self, account: Account, positions: Iterable[int]) -> None:
        """Others hold the same sum and have not used it yet."""
        mine = self._new(account.parts)
        mine.used = True
        for i in positions:
            if self._accounts[i] is account:
                self._accounts[i] = mine
                mine.holders += 1
                account.holders -= 1
                self._unused -= 1

    def unused(self, positions: Iterable[int]) -> bool:
        """Whether any of these gradients waits to be used."""
        accounts = self._accounts
        for i in positions:
            account = accounts[i]
            if account is not None and not account.used:
                return True
        return False

    def clear(self) -> None:
        """Lets go of all accounts: the trace has ended."""
        self._accounts = [None] * len(self._accounts)
        self._held_back = HeldBack((), ())
        self._unused = 0

    def waiting(self) -> list[int]:
        """The positions of all gradients that wait to be used."""
        return [i for i, a in enumerate(self._accounts) if a is not None and not a.used]

    @property
    def alive(self) -> bool:
        """Whether any gradient waits to be used."""
        return self._unused > 0


def _is_zero(grad: Tensor) -> bool:
    """Whether a gradient that changed in place was zeroed, as far as that can be told at once."""
    return grad.is_cpu and grad.layout is torch.strided and not bool(grad.any())
