"""The end of a trace: everything restored, then everything delivered, then what is owed is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from gradtrace.session.mistakes import Seen, mistakes
from gradtrace.session.overhead import Overhead
from gradtrace.session.wiring import Wiring

DRAIN = 5.0
"""Seconds that closing waits for values still on an accelerator."""
HURRIED = 1.0
"""The same after Ctrl-C."""


def close(wiring: Wiring, status: str) -> None:
    """Ends what `Wiring.start` began. Waits at most `close_timeout` for the exporters.

    Raises only what is the user's, as KeyboardInterrupt, and that after the run log is whole.
    """
    guard = wiring.guard
    wiring.ending = True
    wiring.taps.close()
    guard.wrap("closing the last step", wiring.collector.finish)()
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
            f"{wiring.handoff.dropped} steps were lost: the background thread could not keep up",
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
