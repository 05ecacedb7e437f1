"""In which thread gradients may be looked at, and when in none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from gradtrace.collect.trainer import Trainer


def elsewhere(ask: Callable[[], Any]) -> Any:
    """What is answered in a thread that has ended by now."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


def made() -> tuple[Trainer, list[str]]:
    notes: list[str] = []
    return Trainer(lambda source, text: notes.append(f"{source}: {text}")), notes


def test_a_trace_belongs_to_the_thread_that_started_it() -> None:
    """Until an optimizer moves its parameters, nothing is looked at in any other."""
    trainer, notes = made()
    assert trainer.here() and not elsewhere(trainer.here)
    assert trainer.trains() and trainer.here()
    assert not elsewhere(trainer.here) and notes == []


def test_the_training_may_be_in_another_thread() -> None:
    """Who moves the parameters trains them, whoever started the trace; what was missed is told."""
    trainer, notes = made()

    def train() -> tuple[bool, bool, bool]:
        return trainer.here(), trainer.trains(), trainer.here()

    assert elsewhere(train) == (False, True, True)
    [note] = notes
    assert not trainer.here()
    assert note.startswith("threads: these parameters are trained in another thread than the one")


def test_one_thread_may_follow_another() -> None:
    """A loop that goes on in a new thread, as in a notebook, is the same training."""
    trainer, notes = made()
    for _ in range(3):
        assert elsewhere(lambda: trainer.trains() and trainer.here())
    assert trainer.trains() and trainer.here() and len(notes) == 1


def test_threads_that_train_at_once_cannot_be_told_apart() -> None:
    """From then on nobody looks, and it is said once."""
    trainer, notes = made()
    begun, done = threading.Event(), threading.Event()

    def train() -> None:
        trainer.trains()
        begun.set()
        done.wait(30)

    other = threading.Thread(target=train)
    other.start()
    assert begun.wait(30)
    assert not trainer.trains() and not trainer.here()
    done.set()
    other.join()
    assert not trainer.trains() and not trainer.here()
    assert not elsewhere(trainer.trains)
    note = notes[-1]
    assert len(notes) == 2 and note.startswith(
        "threads: several threads train these parameters at once"
    )
