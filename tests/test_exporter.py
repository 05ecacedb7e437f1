"""What an exporter is, and how one is found by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from gradtrace import exporter as exporter_module
from gradtrace.exporter import make_exporter, resolve_exporters
from gradtrace.records import Record, RunInfo
from gradtrace.testing import HangingExporter, RecordingExporter


def test_an_exporter_is_given_once() -> None:
    """The same object twice is refused: it would be opened twice and closed once."""
    exporter = RecordingExporter()
    with pytest.raises(ValueError, match="the same RecordingExporter twice"):
        resolve_exporters([exporter, "console", exporter])
    assert len(resolve_exporters([exporter, RecordingExporter()])) == 2


class WithSettings(RecordingExporter):
    def __init__(self, directory: str) -> None:
        super().__init__(directory)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points: one that works and one whose package is missing."""
    values = {
        "good": "gradtrace.testing:RecordingExporter",
        "missing": "no_such_package_anywhere:Exporter",
    }
    points = [EntryPoint(name, value, exporter_module.GROUP) for name, value in values.items()]
    monkeypatch.setattr(exporter_module, "entry_points", lambda group: points)


@pytest.mark.usefixtures("installed")
def test_names_become_exporters_and_objects_stay() -> None:
    """A name gives a new exporter with defaults, an object is used as it is."""
    own = HangingExporter()
    found = resolve_exporters(["good", own])
    assert isinstance(found[0], RecordingExporter) and found[1] is own


@pytest.mark.usefixtures("installed")
def test_an_unknown_name_is_told_with_those_there_are() -> None:
    """The message has what was given and what could have been."""
    with pytest.raises(ValueError, match=r"'goood'.*'good', 'missing'"):
        resolve_exporters(["goood"])


@pytest.mark.usefixtures("installed")
def test_a_missing_package_is_told_with_the_command_that_installs_it() -> None:
    """The ImportError names the extra."""
    with pytest.raises(ImportError, match=r'pip install "gradtrace\[missing\]"') as caught:
        resolve_exporters(["missing"])
    assert caught.value.name == "no_such_package_anywhere"


def test_an_exporter_that_needs_settings_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose exporter has settings without default asks for an object."""
    point = EntryPoint("s", "any:thing", exporter_module.GROUP)
    monkeypatch.setattr(exporter_module, "entry_points", lambda group: [point])
    monkeypatch.setattr(EntryPoint, "load", lambda self: WithSettings)
    with pytest.raises(TypeError, match=r"'directory'.*WithSettings\(\.\.\.\)"):
        resolve_exporters(["s"])


class NoClose:
    name = "x"

    def open(self, run: RunInfo) -> None: ...

    def export(self, records: Sequence[Record]) -> None: ...


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("console", "brackets"),
        (3, "int"),
        ([NoClose()], "NoClose.*lacks close"),
        ([object()], "lacks name, open, export, close"),
        ([RecordingExporter], "class RecordingExporter"),
        ([RecordingExporter("")], "name"),
    ],
)
def test_what_is_no_exporter_is_refused(given: Any, told: str) -> None:
    """A TypeError says what was given and what it lacks."""
    with pytest.raises(TypeError, match=told):
        resolve_exporters(given)


class Port(RecordingExporter):
    """Has a first setting that is no string."""

    def __init__(self, port: int = 1, *, name: str = "port") -> None:
        if not isinstance(port, int):
            raise TypeError(f"port is {port!r}; expected a number")
        super().__init__(name)


class Two(RecordingExporter):
    def __init__(self, server: str, table: str) -> None:
        super().__init__(server + table)


class KeywordsOnly(RecordingExporter):
    def __init__(self, *, server: str = "") -> None:
        super().__init__(server or "none")


class Anything(RecordingExporter):
    def __init__(self, *args: str, **more: str) -> None:
        super().__init__("/".join(args) or "none")


@pytest.fixture
def factories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points that are called with the names of the classes above."""
    made = {made.__name__: made for made in (WithSettings, Port, Two, KeywordsOnly, Anything)}
    points = [EntryPoint(name, "any:thing", exporter_module.GROUP) for name in made]
    monkeypatch.setattr(exporter_module, "entry_points", lambda group: points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: made[self.name])


@pytest.mark.usefixtures("factories")
def test_an_argument_is_the_first_setting() -> None:
    """The entry point is called with it where one is given, and with nothing otherwise."""
    assert make_exporter("WithSettings", "here").name == "here"
    assert make_exporter("Anything", "here").name == "here"
    assert make_exporter("Anything").name == "none"
    assert make_exporter("Port").name == "port"


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("name", "argument", "told"),
    [
        ("WithSettings", None, r"'WithSettings'.*'directory'.*needs none"),
        ("Two", None, r"'server', 'table'.*needs none"),
        ("Two", "here", r"\('table'\).*no more than one"),
        ("KeywordsOnly", "here", r"'KeywordsOnly' takes no argument, and got 'here'"),
        ("Port", "9999", "port is '9999'; expected a number"),
    ],
)
def test_an_argument_that_does_not_fit_is_told(name: str, argument: str | None, told: str) -> None:
    """One that is missing, with the setting's name; one too many; one the exporter refuses."""
    with pytest.raises(TypeError, match=told):
        make_exporter(name, argument)


def test_our_own_exporters_take_what_they_say(tmp_path: Path) -> None:
    """The file for one; a port as text is refused by the other."""
    assert make_exporter("openmetrics", str(tmp_path / "file")).name == "openmetrics"
    with pytest.raises(TypeError, match=r"'openmetrics'.*'file'"):
        make_exporter("openmetrics")
    with pytest.raises((TypeError, ValueError), match="9999"):
        make_exporter("prometheus", "9999")
