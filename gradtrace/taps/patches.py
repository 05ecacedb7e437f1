"""The one registry of functions that are replaced while traces run.

PyTorch has no hook for clipping, losses or gradient scaling, so those functions are replaced by
wrappers: once per process, however many traces watch. The first observer installs a wrapper, the
last one restores the original, unless somebody else has put a function of theirs on top: then the
wrapper stays below it and passes everything through, and is used again by the next trace.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import CellType
from typing import Any

Function = Callable[..., Any]


class Target:
    """A place that holds a function: an attribute of a module or class, or a closure's cell.

    `wrap(original, observers)` makes the replacement; `observers()` gives the present observers as
    a tuple. Two targets are the same place if owner and name are.
    """

    def __init__(
        self, owner: Any, name: str, wrap: Callable[[Function, Observers], Function]
    ) -> None:
        self.owner = owner
        self.name = name
        self.wrap = wrap

    @property
    def key(self) -> tuple[int, str]:
        """What two targets have in common if they are the same place."""
        return id(self.owner), self.name

    def get(self) -> Function:
        """The function that stands there now."""
        if isinstance(self.owner, CellType):
            function: Function = self.owner.cell_contents
        else:
            function = self.owner.__dict__[self.name]
        return function

    def set(self, function: Function) -> None:
        """Puts a function there."""
        if isinstance(self.owner, CellType):
            self.owner.cell_contents = function
        else:
            setattr(self.owner, self.name, function)


class Method(Target):
    """A method that one instance is given in place of its class's."""

    def get(self) -> Function:
        """The instance's function, its own or its class's."""
        function: Function = getattr(self.owner, self.name)
        return function

    def set(self, function: Function) -> None:
        """Gives the instance the function; its class's own is given by taking ours away."""
        if function == getattr(type(self.owner), self.name).__get__(self.owner):
            vars(self.owner).pop(self.name, None)
        else:
            setattr(self.owner, self.name, function)


def attribute(owner: Any, name: str, wrap: Callable[[Function, Observers], Function]) -> Target:
    """The attribute `name` that `owner` itself holds. Raises AttributeError when it does not."""
    if not callable(vars(owner).get(name)):
        raise AttributeError(f"{getattr(owner, '__name__', owner)} has no function {name}")
    return Target(owner, name, wrap)


def closure(
    function: Function, variable: str, wrap: Callable[[Function, Observers], Function]
) -> Target:
    """The function a decorated `function` calls, held by its closure as `variable`.

    Writing the cell reaches every reference that anybody imported, at any time. Raises
    AttributeError when there is no such variable.
    """
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None)
    name = getattr(function, "__name__", repr(function))
    if code is None or not cells or variable not in code.co_freevars:
        raise AttributeError(f"{name} has no closure variable {variable}")
    return Target(cells[code.co_freevars.index(variable)], variable, wrap)


class Observers:
    """The observers of one place, as an immutable tuple that wrappers read without a lock."""

    def __init__(self) -> None:
        self._observers: tuple[Any, ...] = ()

    def __call__(self) -> tuple[Any, ...]:
        """The present observers."""
        return self._observers

    def add(self, observer: Any) -> None:
        """One more; under the registry's lock."""
        self._observers = (*self._observers, observer)

    def remove(self, observer: Any) -> None:
        """One fewer; under the registry's lock."""
        self._observers = tuple(o for o in self._observers if o is not observer)

    def clear(self) -> None:
        """None any more."""
        self._observers = ()


class _Installed:
    def __init__(self, target: Target) -> None:
        self.target = target
        self.observers = Observers()
        self.original = target.get()
        self.replacement = target.wrap(self.original, self.observers)


class Registry:
    """All replaced functions of a process, with reference counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._installed: dict[tuple[int, str], _Installed] = {}

    def attach(self, target: Target, observer: Any) -> Callable[[], None]:
        """Lets `observer` watch the target; returns what ends that, safe to call twice."""
        with self._lock:
            entry = self._installed.get(target.key)
            if entry is None:
                entry = self._installed[target.key] = _Installed(target)
                target.set(entry.replacement)
            entry.observers.add(observer)

        def detach() -> None:
            with self._lock:
                entry.observers.remove(observer)
                if (
                    not entry.observers()
                    and self._installed.get(target.key) is entry
                    and entry.target.get() is entry.replacement
                ):
                    entry.target.set(entry.original)
                    del self._installed[target.key]

        return detach

    def forget_observers(self) -> None:
        """In a forked child: the wrappers pass everything through; no lock is taken over."""
        self._lock = threading.Lock()
        for entry in self._installed.values():
            entry.observers.clear()


registry = Registry()
"""Process-wide by nature: it counts who needs a replaced function, and holds nothing else."""

os.register_at_fork(after_in_child=registry.forget_observers)
