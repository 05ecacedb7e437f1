"""Replaced functions: one wrapper for all observers, and the original back in the end."""

from __future__ import annotations

import functools
import os
import random
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from gradtrace.taps.patches import (
    Function,
    Method,
    Observers,
    Registry,
    Target,
    attribute,
    closure,
)
from gradtrace.taps.patches import registry as process_wide


def telling(original: Function, observers: Observers) -> Function:
    """Tells each observer, a list, what the function was called with."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for observer in observers():
            observer.append((args, kwargs))
        return original(*args, **kwargs)

    return wrapper


def original(a: int, b: int = 2) -> int:
    return a + b


def place() -> tuple[SimpleNamespace, Target]:
    owner = SimpleNamespace(f=original)
    return owner, attribute(owner, "f", telling)


def test_observers_share_a_wrapper_and_the_last_restores() -> None:
    """Two observers are told by one wrapper in the order they came; the original comes back."""
    registry = Registry()
    owner, target = place()
    first: list[Any] = []
    second: list[Any] = []
    ends = [registry.attach(target, first)]
    wrapper = owner.f
    ends.append(registry.attach(attribute(owner, "f", telling), second))
    assert owner.f is wrapper is not original
    assert owner.f(1, b=5) == 6
    assert first == second == [((1,), {"b": 5})]
    ends[0]()
    ends[0]()
    assert owner.f is wrapper and owner.f(3) == 5
    assert len(first) == 1 and len(second) == 2
    ends[1]()
    assert owner.f is original and registry._installed == {}


def test_a_function_put_over_ours_is_left_there() -> None:
    """Somebody's wrapper stays, with ours silent below it, which the next observer uses again."""
    registry = Registry()
    owner, target = place()
    seen: list[Any] = []
    end = registry.attach(target, seen)
    ours = owner.f

    def theirs(*args: Any) -> Any:
        return ours(*args) * 10

    owner.f = theirs
    end()
    assert owner.f is theirs and owner.f(1) == 30 and seen == []
    again = registry.attach(attribute(owner, "f", telling), seen)
    assert owner.f is theirs and owner.f(1) == 30 and len(seen) == 1
    owner.f = ours
    again()
    assert owner.f is original


def test_a_closure_reaches_every_name() -> None:
    """Written into the cell, the wrapper serves names that were imported long before."""

    def decorated(func: Function) -> Function:
        def outer(*args: Any) -> Any:
            return func(*args)

        return outer

    imported = function = decorated(original)
    registry = Registry()
    seen: list[Any] = []
    end = registry.attach(closure(function, "func", telling), seen)
    assert imported(1) == 3 and seen == [((1,), {})]
    assert closure(function, "func", telling).get() is not original
    end()
    assert imported(1) == 3 and len(seen) == 1
    assert closure(function, "func", telling).get() is original


class Owner:
    def method(self, x: int) -> int:
        return x + 1


def test_one_instances_method_is_replaced() -> None:
    """Other instances keep their class's method; afterwards nothing stands on the instance."""
    registry = Registry()
    one, other = Owner(), Owner()
    seen: list[Any] = []
    end = registry.attach(Method(one, "method", telling), seen)
    assert one.method(1) == other.method(1) == 2
    assert seen == [((1,), {})]
    end()
    assert vars(one) == {} and one.method(1) == 2


def test_an_instances_own_method_comes_back() -> None:
    """A function that the user gave the instance is put back as it was."""
    registry = Registry()
    one: Any = Owner()
    mine = one.method = lambda x: x * 100
    end = registry.attach(Method(one, "method", telling), [])
    assert one.method is not mine and one.method(2) == 200
    end()
    assert vars(one) == {"method": mine}


class Child(Owner):
    pass


def test_what_is_not_there_is_named() -> None:
    """A name that the owner itself lacks, and a closure without the variable, are refused."""
    for owner, name in ((SimpleNamespace(f=3), "f"), (SimpleNamespace(), "f"), (Child, "method")):
        with pytest.raises(AttributeError, match=f"has no function {name}"):
            attribute(owner, name, telling)
    for function in (original, len, functools.partial(original, 1)):
        with pytest.raises(AttributeError, match="has no closure variable func"):
            closure(function, "func", telling)


def test_a_wrapper_that_cannot_be_made_changes_nothing() -> None:
    """When making the replacement raises, the original stays and nothing is remembered."""
    registry = Registry()
    owner, _ = place()

    def broken(original: Function, observers: Observers) -> Function:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        registry.attach(attribute(owner, "f", broken), [])
    assert owner.f is original and registry._installed == {}


def test_a_forked_child_forgets_its_observers() -> None:
    """There the wrappers pass everything through, though a lock was held at the fork."""
    registry = Registry()
    owner, target = place()
    seen: list[Any] = []
    end = registry.attach(target, seen)
    registry._lock.acquire()  # as a thread of the parent may
    registry.forget_observers()
    assert owner.f(1) == 3 and seen == []
    end()
    assert owner.f is original


def test_places_are_told_apart() -> None:
    """Two names of an owner, and one name of two owners, have observers of their own."""
    registry = Registry()
    one, other = SimpleNamespace(f=original, g=original), SimpleNamespace(f=original)
    seen: dict[str, list[Any]] = {"f": [], "g": [], "other": []}
    ends = [
        registry.attach(attribute(one, "f", telling), seen["f"]),
        registry.attach(attribute(one, "g", telling), seen["g"]),
        registry.attach(attribute(other, "f", telling), seen["other"]),
    ]
    one.f(1)
    one.g(2)
    other.f(3)
    assert seen == {"f": [((1,), {})], "g": [((2,), {})], "other": [((3,), {})]}
    for end in ends:
        end()
    assert vars(one) == {"f": original, "g": original} and vars(other) == {"f": original}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_process_wide_registry_forgets_in_a_child() -> None:
    """A forked process calls through the wrappers of its parent and tells nobody."""
    owner, target = place()
    seen: list[Any] = []
    end = process_wide.attach(target, seen)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if owner.f(1) == 3 and seen == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert owner.f(1) == 3 and len(seen) == 1
    end()


def test_many_threads_leave_the_original() -> None:
    """Many threads attach and detach at once: each sees its own calls, and all is restored."""
    registry = Registry()
    owner, _ = place()
    errors: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(200):
            mine: list[Any] = []
            end = registry.attach(attribute(owner, "f", telling), mine)
            number = chance.randrange(10**9)
            if owner.f(number) != number + 2 or ((number,), {}) not in mine:
                errors.append(f"{seed}: {number}")
            end()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert owner.f is original and registry._installed == {}
