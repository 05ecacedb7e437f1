"""What an exporter is, and how one is found by name."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import Any, Protocol, runtime_checkable

from gradtrace.records import Event, RunInfo, StepRecord

GROUP = "gradtrace.exporters"
"""The entry-point group in which packages announce exporters."""


@runtime_checkable
class Exporter(Protocol):
    """Sends records somewhere.

    `open` runs on the user's thread when the trace starts and may raise for wrong settings;
    `export` and `close` run on the exporter's own thread. An `export` that raises is retried with
    the same records, so it should either take all of them or none.

    Two more methods are called where an exporter has them. `remember(records)`, before any export
    of `gradtrace send`, gets what an earlier process has delivered: it shall not be sent again, but
    counts and totals go on from it. `watch(dropped)`, after `open`, gets a callable that tells how
    many records each exporter of the trace has lost, by name; it may be called from any thread.

    An exporter that hands records to somebody who writes them down later has an attribute
    `settling`: after so many seconds, and after `close`, they are safe even if the process is
    killed. Its cursor is that much behind. It makes something new of what it is sent, so that it
    is not opened by `gradtrace send` when nothing is owed.

    An attribute `known_as` is set before `open` to the name that tells it from others of its kind
    in the trace ("mlflow-2"). `resent()` gives the environment variables and the arguments with
    which `gradtrace send` makes an exporter with the same settings. `hurry()` is called when the
    trace has waited for `close` as long as it does.
    """

    name: str

    def open(self, run: RunInfo) -> None:
        """The trace starts."""

    def export(self, records: Sequence[StepRecord | Event]) -> None:
        """Sends records, in order."""

    def close(self) -> None:
        """Nothing more will come."""


@runtime_checkable
class Remembering(Protocol):
    """An exporter whose values depend on records delivered before."""

    def remember(self, records: Sequence[StepRecord | Event]) -> None:
        """Takes records in, without sending them."""


@runtime_checkable
class Hurried(Protocol):
    """An exporter whose `close` takes its time."""

    def hurry(self) -> None:
        """The trace waits no longer: `close`, running in another thread, is to return."""


@runtime_checkable
class Resent(Protocol):
    """An exporter whose settings `gradtrace send` has to be told."""

    def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
        """Environment variables and arguments; no secrets, for they are shown."""


def introduce(exporter: Exporter, name: str) -> None:
    """Tells an exporter by which name its trace knows it, if it wants to know."""
    if hasattr(exporter, "known_as"):
        exporter.known_as = name


def send_command(exporter: Exporter, run: str, name: str) -> str:
    """The command line that delivers later what an exporter owes."""
    environment, arguments = exporter.resent() if isinstance(exporter, Resent) else ({}, ())
    words = [f"{key}={shlex.quote(value)}" for key, value in environment.items()]
    words += ["gradtrace", "send", shlex.quote(run), "--to", name, *map(shlex.quote, arguments)]
    return " ".join(words)


@runtime_checkable
class Watching(Protocol):
    """An exporter that shows how the trace's exporters fare."""

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """How many records each exporter has lost can be asked of `dropped`."""


def resolve_exporters(specs: Any) -> list[Exporter]:
    """Exporter objects as they are, names replaced by exporters with default settings.

    Raises TypeError for what is neither and for a name whose exporter has settings without a
    default, ValueError for an unknown name and for an object given twice, ImportError (with the
    pip line) when the package behind a name is missing.
    """
    if isinstance(specs, str) or not isinstance(specs, Sequence):
        got = repr(specs) if isinstance(specs, str) else f"a {type(specs).__name__}"
        raise TypeError(
            f'exporters is {got}; expected a list such as ["console"]: put it in brackets'
        )
    found = [_by_name(spec) if isinstance(spec, str) else _checked(spec) for spec in specs]
    for at, exporter in enumerate(found):
        if any(exporter is other for other in found[:at]):
            raise ValueError(
                f"exporters holds the same {type(exporter).__name__} twice; expected each once: "
                "leave one out, or make a second one"
            )
    return found


def _checked(exporter: Any) -> Exporter:
    if isinstance(exporter, type):
        raise TypeError(
            f"exporters holds the class {exporter.__name__}; expected an object of it: write "
            f"{exporter.__name__}(...)"
        )
    name = getattr(exporter, "name", None)
    if name is not None and not (isinstance(name, str) and name):
        raise TypeError(
            f"the name of a {type(exporter).__name__} is {name!r}; expected a string that is not "
            "empty, such as its entry point's name"
        )
    missing = [] if name else ["name"]
    missing += [
        verb for verb in ("open", "export", "close") if not callable(getattr(exporter, verb, None))
    ]
    if missing:
        raise TypeError(
            f"a {type(exporter).__name__} is no exporter, for it lacks {', '.join(missing)}; "
            "expected a name and the methods open, export and close: add them"
        )
    checked: Exporter = exporter
    return checked


def _by_name(name: str) -> Exporter:
    found: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(repr(known) for known in sorted(found)) or "none is installed"
        raise ValueError(
            f"there is no exporter {name!r}; expected one of: {known}. Check the spelling, or "
            "install the package that brings it"
        )
    try:
        factory = found[name].load()
    except ImportError as error:
        raise ImportError(
            f"the exporter {name!r} needs a package that is not installed ({error}): "
            f'pip install "gradtrace[{name}]"',
            name=error.name,
        ) from error
    try:
        signature(factory).bind()
    except TypeError as error:
        raise TypeError(
            f"the exporter {name!r} has settings without a default ({error}); expected one that "
            f"needs none: pass an object instead, {getattr(factory, '__name__', name)}(...)"
        ) from error
    return _checked(factory())
