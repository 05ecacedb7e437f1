"""Settings of a library that can only be made through the environment of the whole process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator


class Environment:
    """Environment variables that are set while anybody needs them, unless the user has set them."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._lock = threading.Lock()
        self._users = 0
        self._set: dict[str, str] = {}

    @contextlib.contextmanager
    def applied(self, *values: str) -> Iterator[None]:
        """The first user's values stand until the last one has left."""
        with self._lock:
            if not self._users:
                wanted = zip(self._names, values, strict=True)
                self._set = {name: v for name, v in wanted if name not in os.environ}
                os.environ.update(self._set)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                for name, value in self._set.items() if not self._users else ():
                    if os.environ.get(name) == value:
                        del os.environ[name]
