"""The end of a trace: everything restored, then everything delivered, then what is owed is told."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from gradtrace.session import left_open
from gradtrace.session.ending import FINISHED, status_at_exit, status_of
from gradtrace.session.mistakes import Seen, mistakes
from gradtrace.session.overhead import Overhead
from gradtrace.session.wiring import Wiring

DRAIN = 5.0
"""Seconds that closing waits for values still on an accelerator."""
HURRIED = 1.0
"""The same after Ctrl-C."""


def end(wiring: Wiring, status: str) -> None:
    """Closes what runs behind a trace, and forgets that it was open."""
    left_open.end(wiring)
    try:
        close(wiring, status)
    finally:
        _forget_exit(wiring)


def end_beside(wiring: Wiring) -> None:
    """The same for the training thread of another trace, which shall not wait.

    What is left to deliver has a thread of its own, which the end of the process waits for.
    """
    left_open.end(wiring)
    let_go(wiring)

    def finish() -> None:
        try:
            deliver(wiring, FINISHED)
        finally:
            _forget_exit(wiring)

    thread = threading.Thread(
        target=finish, name=f"gradtrace-{wiring.settings.name}-closing", daemon=True
    )
    _forget_exit(wiring)
    wiring.at_exit = partial(thread.join, DRAIN + wiring.settings.close_timeout)
    atexit.register(wiring.at_exit)
    thread.start()


def end_at_exit(wiring: Wiring) -> None:
    """Has the trace closed when the process ends and nobody has closed it before."""
    pid = os.getpid()

    def at_exit() -> None:
        if os.getpid() == pid:  # a forked child leaves its parent's trace alone
            end(wiring, _status_at_exit(wiring))

    wiring.at_exit = at_exit
    atexit.register(at_exit)


def _forget_exit(wiring: Wiring) -> None:
    if wiring.at_exit is not None:
        atexit.unregister(wiring.at_exit)


def _status_at_exit(wiring: Wiring) -> str:
    """How a run ended that nobody has closed: by what ended the process, or its own thread."""
    status, failure = status_at_exit(), wiring.observer.failure
    if status == FINISHED and failure and failure[1] == wiring.collector.backwards:
        return status_of(failure[0])
    return status


def close(wiring: Wiring, status: str) -> None:
    """Ends what `Wiring.start` began. Waits at most `close_timeout` for the exporters.

    Raises only what is the user's, as KeyboardInterrupt, and that after the run log is whole.
    """
    let_go(wiring)
    deliver(wiring, status)


def let_go(wiring: Wiring) -> None:
    """Restores everything and hands over what is left. Waits for nothing; training thread."""
    wiring.ending = True
    wiring.taps.close()
    wiring.guard.wrap("closing the last step", wiring.collector.finish)()


def deliver(wiring: Wiring, status: str) -> None:
    """What `close` does after `let_go`, in any thread but the trace's own ones."""
    guard = wiring.guard
    if wiring.run_log is not None and status != "finished":
        # Exporters, which end their own runs now, may want to know.
        wiring.run_log.update_info({"status": status})
    owed: dict[str, str] = {}
    interrupted: BaseException | None = None
    for drain, patience in ((DRAIN, wiring.settings.close_timeout), (HURRIED, 0.0)):
        try:
            owed = _wait(wiring, drain, patience)
            break
        except Exception as error:
            guard.failed("closing", error)
        except BaseException as error:  # Ctrl-C, once or twice: the run log shall be whole
            interrupted = error
    stages: dict[str, Callable[[], None]] = {
        "looking for what was missed": lambda: _look_for_mistakes(wiring),
        "telling what is owed": lambda: _tell(wiring, owed),
        "ending the run log": lambda: _end(wiring, status),
    }
    for source, stage in stages.items():
        try:
            stage()
        except Exception as error:
            guard.failed(source, error)
    if interrupted is not None:
        raise interrupted


def _wait(wiring: Wiring, drain: float, close_timeout: float) -> dict[str, str]:
    """Lets everything arrive; what the exporters still owe, in words, by name."""
    assert wiring.background is not None
    if wiring.background.stop(time.monotonic() + drain):
        if wiring.run_log is not None:
            wiring.run_log.flush()
    else:  # the log is that thread's
        wiring.notes.add(
            "background",
            f"{len(wiring.handoff)} steps at the end were not recorded: the background thread was "
            f"still busy after {drain:g} s, most likely in an on_spike callback: let that hand "
            "long work to a thread of its own",
            warn=True,
        )
    return wiring.delivery.close(close_timeout)


def _look_for_mistakes(wiring: Wiring) -> None:
    """Notes why there is nothing to see where there should be."""
    seen = Seen(
        steps=wiring.recent.count,
        backwards=wiring.collector.backwards,
        others=wiring.collector.others,
        gradients=wiring.recent.gradients,
        losses=wiring.recent.losses,
        by_hand=wiring.collector.by_hand,
        loader=wiring.loader_given,
        batches=wiring.observer.delivered_batches,
        told=wiring.silence.told,
    )
    for source, message in mistakes(seen):
        wiring.notes.add(source, message, warn=True)


def _tell(wiring: Wiring, owed: dict[str, str]) -> None:
    """Notes what is owed and lost."""
    for source, message in wiring.delivery.troubles(owed, wiring.path):
        wiring.notes.add(source, message, warn=True)
    if wiring.handoff.dropped:
        wiring.notes.add(
            "hand-over",
            f"{wiring.handoff.dropped} steps were lost: the background thread could not keep up; "
            "Sampling(activations=..., updates=..., histograms=...) measures less often",
        )


def _end(wiring: Wiring, status: str) -> None:
    """Lets the last notes arrive and ends the run log."""
    assert wiring.background is not None
    if wiring.background.ended:
        wiring.background.turn(final=True)
    elif wiring.run_log is not None:
        # That thread has left the log behind: it calls callbacks after everything else.
        wiring.run_log.append(wiring.notes.take())
    if wiring.run_log is not None:
        wiring.run_log.close(
            {
                "steps": wiring.recent.count,
                "dropped": wiring.handoff.dropped,
                "discarded": wiring.collector.discarded,
                "overhead": asdict(Overhead.of(wiring.guard, wiring.recent)),
                "clipping": asdict(wiring.clipping.summary()),
            },
            status=status,
        )
