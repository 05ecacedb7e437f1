"""What an exporter is, and how one is found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from typing import Any, Protocol, runtime_checkable

from gradtrace.records import Event, RunInfo, StepRecord

GROUP = "gradtrace.exporters"
"""The entry-point group in which packages announce exporters."""
_POSITIONAL = (
    Parameter.POSITIONAL_ONLY,
    Parameter.POSITIONAL_OR_KEYWORD,
    Parameter.VAR_POSITIONAL,
)
_COLLECTING = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@runtime_checkable
class Exporter(Protocol):
    """Sends records somewhere. Three verbs and a name; nothing is inherited or registered.

    `open` runs on the user's thread when the trace starts and may raise for wrong settings;
    `export` and `close` run on the exporter's own thread. An `export` that raises is retried with
    the same records, so it should either take all of them or none.

    What an exporter may have besides is optional, and each on its own: the methods of
    `Remembering`, `Watching`, `Resent` and `Hurried`, and three attributes:

    - `known_as`, a string, is set before `open` to the name that tells the exporter from others of
      its kind in the trace ("mlflow-2").
    - `settling`, seconds: it hands records to somebody who writes them down later. After so long,
      and after `close`, they are safe even if the process is killed; the cursor is that much
      behind. It makes something new of what it is sent, so that `gradtrace send` does not open it
      when nothing is owed.
    - `whole = True`: it makes one thing of the whole run, such as a file. No cursor is kept, and
      `gradtrace send` gives it all of the run each time.
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
        """Gets what an earlier process has delivered, before any export of `gradtrace send`.

        It shall not be sent again, but counts and totals go on from it.
        """


@runtime_checkable
class Watching(Protocol):
    """An exporter that shows how the trace's exporters fare."""

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """How many records each exporter has lost, by name; called after `open`.

        `dropped` may be called from any thread.
        """


@runtime_checkable
class Resent(Protocol):
    """An exporter whose settings `gradtrace send` has to be told."""

    def resent(self) -> tuple[Mapping[str, str], Sequence[str]]:
        """Environment variables and arguments that make one with the same settings.

        No secrets, for they are shown.
        """


@runtime_checkable
class Hurried(Protocol):
    """An exporter whose `close` takes its time."""

    def hurry(self) -> None:
        """The trace waits no longer: `close`, running in another thread, is to return."""


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
    found = [make_exporter(spec) if isinstance(spec, str) else _checked(spec) for spec in specs]
    for at, exporter in enumerate(found):
        if any(exporter is other for other in found[:at]):
            raise ValueError(
                f"exporters holds the same {type(exporter).__name__} twice; expected each once: "
                "leave one out, or make a second one"
            )
    return found


def make_exporter(name: str, argument: str | None = None) -> Exporter:
    """The exporter of this entry point, with default settings; `argument` is its first one.

    Raises TypeError where it takes no argument or needs one, ValueError for an unknown name,
    ImportError (with the pip line) when the package behind it is missing, and what the exporter
    raises for an argument that it cannot use.
    """
    factory = _factory(name)
    _check_argument(name, factory, argument)
    return _checked(factory() if argument is None else factory(argument))


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


def _factory(name: str) -> Callable[..., Any]:
    found: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(repr(known) for known in sorted(found)) or "none is installed"
        raise ValueError(
            f"there is no exporter {name!r}; expected one of: {known}. Check the spelling, or "
            "install the package that brings it"
        )
    try:
        factory: Callable[..., Any] = found[name].load()
    except ImportError as error:
        raise ImportError(
            f"the exporter {name!r} needs a package that is not installed ({error}): "
            f'pip install "gradtrace[{name}]"',
            name=error.name,
        ) from error
    return factory


def _check_argument(name: str, factory: Callable[..., Any], argument: str | None) -> None:
    """Raises TypeError where the factory cannot be called with this argument alone, or without."""
    parameters = list(signature(factory).parameters.values())
    takes = [p for p in parameters if p.kind in _POSITIONAL]
    needs = [
        p.name for p in parameters if p.default is Parameter.empty and p.kind not in _COLLECTING
    ]
    called = getattr(factory, "__name__", name)
    if argument is not None and not takes:
        raise TypeError(
            f"the exporter {name!r} takes no argument, and got {argument!r}: leave it out, or make "
            f"an object with the settings it has, {called}(...)"
        )
    if argument is not None and needs[:1] == [takes[0].name]:
        del needs[0]
    if needs:
        listed = ", ".join(repr(need) for need in needs)
        raise TypeError(
            f"the exporter {name!r} has settings without a default ({listed}); expected "
            + ("one that needs none" if argument is None else "no more than one")
            + f": pass an object instead, {called}(...), or to `gradtrace send` the setting as its "
            "argument"
        )
