"""The end of a trace: everything restored, then everything delivered, then what is owed is told."""

from __future__ import annotations

import time
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
    wiring.taps.close()
    guard.wrap("closing the last step", wiring.collector.finish)()
    if wiring.run_log is not None and status != "finished":
        # Exporters, which end their own runs now, may want to know.
        wiring.run_log.update_info({"status": status})
    interrupted: BaseException | None = None
    try:
        owed = _wait(wiring, DRAIN, wiring.settings.close_timeout)
    except BaseException as error:  # the run log shall be whole nevertheless
        if isinstance(error, Exception):
            guard.failed("closing", error)
        else:  # Ctrl-C, which is the user's
            interrupted = error
        owed = _wait(wiring, HURRIED, 0.0)
    guard.wrap("looking for what was missed", _look_for_mistakes)(wiring)
    _settle(wiring, owed, status)
    if interrupted is not None:
        raise interrupted


def _wait(wiring: Wiring, drain: float, close_timeout: float) -> dict[str, str]:
    """Lets everything arrive; what the exporters still owe, in words, by name."""
    assert wiring.background is not None
    wiring.background.stop(time.monotonic() + drain)
    if wiring.run_log is not None:
        wiring.run_log.flush()
    return wiring.delivery.close(close_timeout)


def _look_for_mistakes(wiring: Wiring) -> None:
    """Notes why there is nothing to see where there should be."""
    seen = Seen(
        steps=wiring.recent.count,
        backwards=wiring.collector.backwards,
        others=wiring.collector.others,
        gradients=wiring.recent.gradients,
        loader=wiring.loader_given,
        batches=wiring.observer.delivered_batches,
    )
    for source, message in mistakes(seen):
        wiring.notes.add(source, message, warn=True)


def _settle(wiring: Wiring, owed: dict[str, str], status: str) -> None:
    """Tells what is owed and lost, and ends the run log."""
    assert wiring.background is not None
    for source, message in wiring.delivery.troubles(owed, wiring.path):
        wiring.notes.add(source, message, warn=True)
    if wiring.handoff.dropped:
        wiring.notes.add(
            "hand-over",
            f"{wiring.handoff.dropped} steps were lost: the background thread could not keep up",
        )
    wiring.background.turn(final=True)
    if wiring.run_log is not None:
        wiring.run_log.close(
            {
                "steps": wiring.recent.count,
                "dropped": wiring.handoff.dropped,
                "overhead": asdict(Overhead.of(wiring.guard, wiring.recent)),
                "clipping": asdict(wiring.clipping.summary()),
            },
            status=status,
        )
