"""Only the thread that trains is asked for gradients."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gradtrace.collect.trainer import Trainer


def new() -> tuple[Trainer, list[str]]:
    notes: list[str] = []
    return Trainer(lambda source, text: notes.append(source)), notes


def elsewhere(function: Callable[[], bool]) -> bool:
    """What the function says in another thread, which then ends."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_the_thread_that_starts_trains_until_another_moves_parameters() -> None:
    """Other threads are told no; the first that steps takes over."""
    trainer, notes = new()
    assert trainer.here() and not elsewhere(trainer.here)
    assert elsewhere(trainer.trains)
    assert not trainer.here() and notes == []


def test_a_thread_that_has_ended_may_be_followed() -> None:
    """One after the other is no sharing."""
    trainer, notes = new()
    assert elsewhere(trainer.trains) and trainer.trains() and trainer.here()
    assert notes == []


def test_threads_that_train_at_once_end_it() -> None:
    """They cannot be told apart: neither is looked at any more, and one note says so."""
    trainer, notes = new()
    assert trainer.trains()
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(trainer.trains).result()
        assert not pool.submit(trainer.here).result()
        assert not trainer.trains() and not trainer.here()
    assert notes == ["threads"]
