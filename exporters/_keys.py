"""What a run is called and how it was set up, as a tracking server takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from gradtrace.metrics.keys import Keys, marked
from gradtrace.records import RunInfo

MAX_VALUE = 500


def spelt(text: str) -> str:
    """Text that UTF-8 has bytes for: lone surrogates are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def run_mark(run: RunInfo, *more: str) -> str:
    """Tells one run from another of the same name, in every process alike; 64 hex digits."""
    identity = "\n".join((run.name, repr(run.started), str(run.rank), *more))
    return sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()


def flat_params(config: Mapping[str, Any]) -> dict[str, str]:
    """Hyper-parameters as keys and texts: nested mappings joined with dots, texts cut at 500."""
    params: dict[str, str] = {}
    keys = Keys()
    for path, value in _leaves(config, ()):
        key = keys[".".join(path)]
        if key in params:  # {"a": {"b": 1}, "a.b": 2}
            key = marked(key, repr(path))
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
