"""What constructors check, each with an error that says what was got and what was expected."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any


def needed(*modules: str, by: str, extra: str) -> list[Any]:
    """The modules, in order. Raises ImportError with the pip line where one is not installed."""
    try:
        return [import_module(module) for module in modules]
    except ImportError as error:
        raise ImportError(
            f"{by} needs a package that is not installed ({error}): "
            f'pip install "gradtrace[{extra}]"',
            name=error.name,
        ) from error


def check_text(name: str, value: object, expected: str) -> None:
    """Raises TypeError for what is no text, ValueError for an empty one."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    if not value:
        raise ValueError(f"{name} is empty; expected {expected}")


def check_optional_text(name: str, value: object, expected: str) -> None:
    """The same, but None is right."""
    if value is not None:
        check_text(name, value, f"{expected}: or leave it out")


def check_count(name: str, value: object, least: int, most: int, expected: str) -> None:
    """Raises TypeError for what is no integer, ValueError for one out of bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; expected {expected}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def check_max_series(value: object) -> None:
    """`max_series` of those that send Prometheus' series."""
    check_count("max_series", value, 1, 1_000_000, "the most series to send, such as 1000")


def check_seconds(
    name: str, value: object, expected: str, *, least: float = 0.0, above: bool = False
) -> float:
    """Seconds, `least` or more, or more than `least` if `above`.

    Raises TypeError for what is no number, ValueError for one out of bounds, NaN or infinite.
    """
    expected = f"expected seconds, {expected}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}; {expected}")
    if not least <= value < TIMEOUT_MAX or (above and value == least):
        raise ValueError(f"{name} is {value!r}; {expected}")
    return float(value)


def checked_path(name: str, value: object, expected: str) -> Path:
    """The path. Raises TypeError for what is none, or empty."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    return Path(value)
