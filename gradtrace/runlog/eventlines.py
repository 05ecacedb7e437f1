"""How events look on disk: one a line, strict JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Iterable
from typing import Any

from gradtrace.records import EVENT_TYPES, Event, event_from_dict, event_to_dict
from gradtrace.runlog.jsontext import as_number, to_json


def event_line(event: Event) -> bytes:
    """One line of `events.jsonl`, newline included, strict JSON."""
    return to_json(event_to_dict(event)).encode() + b"\n"


def parse_event(line: bytes) -> Event | None:
    """The event of a line; None for what is torn, foreign or of a kind not known here."""
    try:
        data = json.loads(line)
        hints = _hints(data["kind"])
        return event_from_dict(
            {key: _revive(value, hints.get(key, Any)) for key, value in data.items()}
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


@functools.cache
def _hints(kind: str) -> dict[str, Any]:
    return typing.get_type_hints(EVENT_TYPES[kind])


def _revive(value: Any, hint: Any) -> Any:
    """What JSON flattened, as the annotation says it was: non-finite floats, tuples, records."""
    if hint is float:
        return as_number(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        fitting = _fitting(value, arguments)
        return _revive(value, fitting[0]) if len(fitting) == 1 else value
    if origin is tuple and isinstance(value, list):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_revive(item, arguments[0]) for item in value)
        return tuple(_revive(v, a) for v, a in zip(value, arguments, strict=True))
    if isinstance(value, dict) and len(arguments) == 2:
        key_type = int if arguments[0] is int else str
        return {key_type(key): _revive(item, arguments[1]) for key, item in value.items()}
    if isinstance(value, list) and len(arguments) == 1:
        return [_revive(item, arguments[0]) for item in value]
    if isinstance(value, dict) and dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return hint(**{key: _revive(item, hints[key]) for key, item in value.items()})
    return value


def _fitting(value: Any, hints: Iterable[Any]) -> list[Any]:
    """The members of a union that `value` may have been."""
    if value is None:
        return []
    if isinstance(value, str) and str in hints:
        return [str]
    return [hint for hint in hints if hint not in (type(None), str)]
