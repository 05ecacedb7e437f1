"""The last things to send when a run ends, of which each may fail."""

from __future__ import annotations

import time
from collections.abc import Callable


class Attempts:
    """Tries one call after the other, until a time; keeps what is missing and the first error."""

    def __init__(self, until: float) -> None:
        self._until = until
        self.missing: list[str] = []
        self.error: Exception | None = None

    def attempt(self, what: str, call: Callable[[], object], *, always: bool = False) -> None:
        """Calls, also when time is over if `always`; `what` is missing if that fails."""
        if not self.works(call, always=always):
            self.missing.append(what)

    def works(self, call: Callable[[], object], *, always: bool = False) -> bool:
        """Whether the call was made and raised nothing."""
        error: Exception = TimeoutError("no time was left")
        if always or time.monotonic() <= self._until:
            try:
                call()
                return True
            except Exception as raised:
                error = raised
        self.error = self.error or error
        return False
