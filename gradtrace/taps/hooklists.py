"""Global lists of hooks, which torch walks through while it calls them: watched by standing in.

Torch iterates an OrderedDict, with user code running between one entry and the next. An entry that
is made or deleted meanwhile, by any thread, ends that iteration with "OrderedDict mutated during
iteration", in a training loop that has nothing to do with whoever made it. So nothing is ever
registered: while traces run, an object of ours stands where torch looks for the dict. One
assignment puts it there and one takes it away; a thread that is on its way through either goes on
undisturbed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from types import ModuleType
from typing import Any

from gradtrace.taps.patches import Function, Observers, Target


class HookList(MutableMapping[int, Function]):
    """A dict of hooks as torch sees it while traces run: the real one's entries, then `call`.

    `call(observers)` makes the hook that tells the observers. What others register and remove goes
    to the real dict. It must live as long as the process does: a handle that somebody got
    meanwhile refers to it, weakly, and removes its hook through it also when no trace runs.
    """

    def __init__(self, call: Callable[[Observers], Function]) -> None:
        self._call = call
        self._real: MutableMapping[int, Function] = {}
        self._hook: Function = call(Observers())

    def target(self, module: ModuleType, name: str) -> Target:
        """The place `name` of `module`. Raises AttributeError where torch has no such dict."""
        if not isinstance(vars(module).get(name), MutableMapping):
            raise AttributeError(f"{module.__name__} has no dict of hooks {name}")
        return Target(module, name, self._stand_in)

    def _stand_in(self, real: Any, observers: Observers) -> Any:
        self._hook = self._call(observers)
        if real is not self:  # it may have been put back by who has found it there
            self._real = real
        return self

    def values(self) -> Any:
        """The hooks as they are when the iteration begins, ours last: it sees what others do."""
        yield from (*self._real.values(), self._hook)

    def __getitem__(self, key: int) -> Function:
        return self._real[key]

    def __setitem__(self, key: int, hook: Function) -> None:
        self._real[key] = hook

    def __delitem__(self, key: int) -> None:
        del self._real[key]

    def __iter__(self) -> Iterator[int]:
        return iter(self._real)

    def __len__(self) -> int:
        return len(self._real)

    def __reduce__(self) -> tuple[Any, ...]:
        # A handle that is copied or pickled takes along what it refers to.
        return OrderedDict, (list(self._real.items()),)
