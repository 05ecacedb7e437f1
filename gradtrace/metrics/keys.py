"""Keys as a tracking server takes them: one bad key would cost its whole batch."""

from __future__ import annotations

import re
from hashlib import sha256

MAX_KEY = 250
MOST_KEYS = 10_000

_BAD = re.compile(r"[^A-Za-z0-9_\-. :/]")
_HASH = 8


def clean_key(key: str) -> str:
    """The key as it is where it is allowed; otherwise one that is, and that no other key becomes.

    Allowed are at most 250 of ASCII letters, digits, `_`, `-`, `.`, space, `:` and `/`, and no part
    between slashes that is empty, `.` or `..`. A changed key ends in a hash of the original, so it
    is the same in every process.
    """
    clean = "/".join(
        "_" if part in ("", ".", "..") else part for part in _BAD.sub("_", key).split("/")
    )
    return key if clean == key and len(key) <= MAX_KEY else marked(clean, key)


def marked(clean: str, origin: str) -> str:
    """A clean key with a hash of what it was made of, cut where it is too long."""
    digest = sha256(origin.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    return f"{clean[: MAX_KEY - _HASH - 1]}-{digest}"


class Keys(dict[str, str]):
    """What each key of a run becomes: a clean one, and none a folder of another. One thread.

    Some stores keep a file for each. Of "val" and "val/loss", which a user may have logged, the one
    that comes second is changed, in the same way in every process that sees the run from its start.
    At most `MOST_KEYS` are kept: a run that makes up new ones at every step has them clean only.
    """

    def __init__(self) -> None:
        super().__init__()
        self._taken: set[str] = set()
        self._folders: set[str] = set()

    def __missing__(self, key: str) -> str:
        if len(self) >= MOST_KEYS:
            for known in (self, self._taken, self._folders):
                known.clear()
        clean = clean_key(key)
        above = _above(clean)
        for at, folder in enumerate(above):
            if folder in self._taken:
                rest = clean[len(above[at - 1]) + 1 if at else 0 :].replace("/", "_")
                clean = marked("/".join([*above[at - 1 : at], rest]), key)
                break
        if clean in self._folders:
            clean = marked(clean, key)
        self._folders.update(_above(clean))
        self._taken.add(clean)
        self[key] = clean
        return clean


def _above(key: str) -> list[str]:
    """The folders a key lies in, outermost first."""
    parts = key.split("/")
    return ["/".join(parts[:at]) for at in range(1, len(parts))]
