"""Strict JSON text of anything, and the numbers that JSON lacks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def jsonable(value: Any, depth: int = 0) -> Any:
    """`value` in terms JSON knows: NaN and infinities as strings, paths as text, the rest `repr`.

    Never raises: an object whose `repr` fails is named by its type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if depth < 16:
        if isinstance(value, Mapping):
            return {str(key): jsonable(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [jsonable(item, depth + 1) for item in value]
    try:
        return repr(value)
    except Exception:  # a user's object may do anything in its repr
        return f"<{type(value).__name__}>"


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON text of anything, see `jsonable`; fast for what is strict already."""
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(value, allow_nan=False, separators=separators, indent=indent)
    except (TypeError, ValueError):
        return json.dumps(jsonable(value), allow_nan=False, separators=separators, indent=indent)


def as_number(value: Any) -> Any:
    """The float that `jsonable` made a string of; anything else as it is."""
    return _NONFINITE.get(value, value) if isinstance(value, str) else value
