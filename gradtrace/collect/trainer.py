"""In which thread a trace's parameters are trained: only there may their gradients be looked at.

Autograd writes `.grad` without the GIL, so a look from another thread may crash the process. A
trace belongs to the thread that started it, until an optimizer moves its parameters in another.
Several live threads that move the same parameters cannot be told apart: then nothing is looked at
any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import get_ident


class Trainer:
    """Answers whether the calling thread is the one that trains. Any thread."""

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self._note = note
        self._thread = get_ident()
        self._stepped = False
        self._shared = False

    def here(self) -> bool:
        """Whether the calling thread is known to train these parameters, alone. 0.1 us."""
        return get_ident() == self._thread and not self._shared

    @property
    def shared(self) -> bool:
        """Whether several threads train these parameters, so that nothing is recorded."""
        return self._shared

    def here_or_gone(self) -> bool:
        """Whether the thread that trains is the calling one, or has ended. Any thread."""
        return self.here() or self._thread not in {t.ident for t in threading.enumerate()}

    def trains(self) -> bool:
        """The calling thread moves these parameters, so it trains them; whether alone."""
        me = get_ident()
        if me != self._thread and not self._shared:
            if self._stepped and self._thread in {t.ident for t in threading.enumerate()}:
                self._shared = True
                self._note(
                    "threads",
                    "several threads train these parameters at once: which of them did what cannot "
                    "be told, so steps are recorded no longer; give each thread a model, and a "
                    "trace, of its own",
                )
            elif not self._stepped:
                self._note(
                    "threads",
                    "these parameters are trained in another thread than the one that started the "
                    "trace: what that thread did before its first optimizer step was not seen, nor "
                    "are batches of an iteration that had begun by then; start the trace in the "
                    "thread that trains",
                )
            self._thread = me
        self._stepped = True
        return not self._shared
