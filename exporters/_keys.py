"""Names and parameters as a tracking server takes them: one bad key would cost its whole batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from gradtrace.records import RunInfo

MAX_KEY = 250
MAX_VALUE = 500

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
    if clean == key and len(key) <= MAX_KEY:
        return key
    digest = sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    return f"{clean[: MAX_KEY - _HASH - 1]}-{digest}"


def run_mark(run: RunInfo, *more: str) -> str:
    """Tells one run from another of the same name, in every process alike; 64 hex digits."""
    identity = "\n".join((run.name, repr(run.started), str(run.rank), *more))
    return sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()


def flat_params(config: Mapping[str, Any]) -> dict[str, str]:
    """Hyper-parameters as keys and texts: nested mappings joined with dots, texts cut at 500."""
    params: dict[str, str] = {}
    for path, value in _leaves(config, ()):
        key = clean_key(".".join(path))
        if key in params:  # {"a": {"b": 1}, "a.b": 2}
            digest = sha256(repr(path).encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
            key = f"{key[: MAX_KEY - _HASH - 1]}-{digest}"
        params[key] = _text(value)
    return params


def _leaves(
    config: Mapping[Any, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in config.items():
        here = (*path, str(key))
        if isinstance(value, Mapping) and value and len(here) < 20:
            yield from _leaves(value, here)
        else:
            yield here, value


def _text(value: Any) -> str:
    try:
        # A tuple comes back from the run directory as a list; it shall be the same parameter.
        text = str(list(value) if isinstance(value, tuple) else value)
    except Exception:  # the user's own __str__
        text = f"a {type(value).__name__}"
    # No database takes NUL, no JSON a lone half of a character.
    plain = text.replace("\0", "").encode("utf-8", "replace").decode()
    return plain if len(plain) <= MAX_VALUE else plain[: MAX_VALUE - 3] + "..."
