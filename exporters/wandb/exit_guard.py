"""That no thread of ours is in W&B, or comes out of it with an error, while the interpreter ends.

W&B ends its core in a hook of the interpreter's exit. A thread that is left in a call then gets an
error, and goes on with that, logging it for one, while Python takes itself apart: killed as it
writes to standard error it keeps the stream's lock, and Python aborts (SIGABRT, "could not acquire
lock ... at interpreter shutdown"). So from then on whoever has an error, or comes anew, stays here.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from gradtrace.exporters.wandb import core

EXIT_WITHIN = 5.0
"""Seconds that the interpreter's exit waits for a call that has begun."""


class ExitGuard:
    """Knows whether a thread is in W&B, and whether the interpreter ends."""

    def __init__(self, wandb: Any) -> None:
        self._wandb = wandb
        self._idle = threading.Event()
        self._idle.set()
        self._over = threading.Event()

    def watch(self) -> None:
        """Call it when W&B's core runs, and before what delivers to us at exit is hooked.

        Hooks run last in, first out: ours after the trace has been closed, before the core ends.
        """
        atexit.register(self._end)

    def core_started(self) -> None:
        """Another core runs, whose hook comes before all that are there already."""
        atexit.unregister(self._wait)
        atexit.register(self._wait)

    def unwatch(self) -> None:
        """Nothing more will be called."""
        atexit.unregister(self._end)
        atexit.unregister(self._wait)

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Around calls of W&B."""
        self.hold_at_exit()
        self._idle.clear()
        try:
            yield
        except BaseException:
            self.hold_at_exit()
            raise
        finally:
            self._idle.set()

    def hold_at_exit(self) -> None:
        """Returns unless the interpreter ends: then never, as our daemon threads end with it."""
        if self._over.is_set():
            self._idle.set()
            threading.Event().wait()

    def _end(self) -> None:
        self._over.set()
        self._wait()

    def _wait(self) -> None:
        if not self._idle.wait(EXIT_WITHIN):
            core.call_off_exit(self._wandb)
